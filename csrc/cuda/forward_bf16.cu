#include "elementwise.cuh"

template <>
const taylorderiv::CudaVariant*
taylorderiv::cuda_variants<taylorderiv::CudaPass::forward, taylorderiv::CudaStorage::bf16>(int op) {
  return unary_variants<Forward, __nv_bfloat16>[op];
}
