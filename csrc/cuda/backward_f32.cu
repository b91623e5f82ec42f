#include "elementwise.cuh"

template <>
const taylorderiv::CudaVariant*
taylorderiv::cuda_variants<taylorderiv::CudaPass::backward, taylorderiv::CudaStorage::f32>(int op) {
  return unary_variants<Backward, float>[op];
}
