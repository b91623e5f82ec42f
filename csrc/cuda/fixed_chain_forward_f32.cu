#include "fixed_chain.cuh"

template <>
taylorderiv::ChainKernel taylorderiv::fixed_chain_kernel<float, false>(int layout) {
  return fixed_forward_kernel<float>(layout);
}
