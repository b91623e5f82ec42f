#include "chain.cuh"

template <>
taylorderiv::ChainKernel taylorderiv::chain_kernel<double, false>() {
  return &chain_forward<double>;
}
