#include "fixed_chain.cuh"

template <>
taylorderiv::ChainKernel taylorderiv::split_chain_kernel<true>(int layout) {
  return fixed_kernel_of<float, true, true>(layout);
}
