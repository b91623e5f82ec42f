#include "chain.cuh"

template <>
taylorderiv::ChainKernel taylorderiv::chain_kernel<double, true>() {
  return &chain_backward<double>;
}
