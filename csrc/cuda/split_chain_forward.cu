#include "fixed_chain.cuh"

template <>
taylorderiv::ChainKernel taylorderiv::split_chain_kernel<false>(int layout) {
  return fixed_kernel_of<float, true, false>(layout);
}
