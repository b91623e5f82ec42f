#include "fixed_chain.cuh"

template <>
taylorderiv::ChainKernel taylorderiv::fixed_chain_kernel<double, false>(int layout) {
  return fixed_forward_kernel<double>(layout);
}
