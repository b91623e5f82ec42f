#include "fixed_chain.cuh"

template <>
taylorderiv::ChainKernel taylorderiv::fixed_chain_kernel<float, false>(int layout) {
  return fixed_kernel_of<float, false, false>(layout);
}
