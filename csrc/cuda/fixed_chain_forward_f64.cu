#include "fixed_chain.cuh"

template <>
taylorderiv::ChainKernel taylorderiv::fixed_chain_kernel<double, false>(int layout) {
  return fixed_kernel_of<double, false, false>(layout);
}
