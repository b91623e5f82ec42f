#include "elementwise.cuh"

template <>
const taylorderiv::CudaVariant*
taylorderiv::cuda_variants<taylorderiv::CudaPass::backward, taylorderiv::CudaStorage::bf16>(int op) {
  return unary_variants<Backward, __nv_bfloat16>[op];
}
