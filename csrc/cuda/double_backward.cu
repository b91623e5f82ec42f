#include "elementwise.cuh"

#define TD_DEFINE(storage, S)                                                                                     \
  template <>                                                                                                     \
  const taylorderiv::CudaVariant*                                                                                 \
  taylorderiv::cuda_variants<taylorderiv::CudaPass::double_backward, taylorderiv::CudaStorage::storage>(int op) { \
    return unary_variants<DoubleBackward, S>[op];                                                                 \
  }
TD_DEFINE(f32, float)
TD_DEFINE(f64, double)
TD_DEFINE(f16, __half)
TD_DEFINE(bf16, __nv_bfloat16)
