#include "fixed_chain.cuh"

template <>
taylorderiv::ChainKernel taylorderiv::fixed_chain_kernel<double, true>(int layout) {
  return fixed_backward_kernel<double>(layout);
}
