#include "chain.cuh"

template <>
taylorderiv::ChainKernel taylorderiv::chain_kernel<float, false>() {
  return &chain_forward<float>;
}
