#include "chain.cuh"

template <>
taylorderiv::ChainKernel taylorderiv::chain_kernel<float, true>() {
  return &chain_backward<float>;
}
