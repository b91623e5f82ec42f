#include "elementwise.cuh"

template <>
const taylorderiv::CudaVariant*
taylorderiv::cuda_variants<taylorderiv::CudaPass::forward, taylorderiv::CudaStorage::f16>(int op) {
  return unary_variants<Forward, __half>[op];
}
