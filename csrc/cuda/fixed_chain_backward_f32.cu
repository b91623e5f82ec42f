#include "fixed_chain.cuh"

template <>
taylorderiv::ChainKernel taylorderiv::fixed_chain_kernel<float, true>(int layout) {
  return fixed_kernel_of<float, false, true>(layout);
}
