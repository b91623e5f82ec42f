#include "elementwise.cuh"

template <>
const taylorderiv::CudaVariant*
taylorderiv::cuda_variants<taylorderiv::CudaPass::backward, taylorderiv::CudaStorage::f16>(int op) {
  return unary_variants<Backward, __half>[op];
}
