#include "elementwise.cuh"

#define TD_DEFINE(pass, P, storage, S)                                                              \
  template <>                                                                                       \
  const taylorderiv::CudaVariant*                                                                   \
  taylorderiv::cuda_variants<taylorderiv::CudaPass::pass, taylorderiv::CudaStorage::storage>(int) { \
    return variants<P, S>.data();                                                                   \
  }
TD_DEFINE(cauchy, Cauchy, f32, float)
TD_DEFINE(cauchy, Cauchy, f64, double)
TD_DEFINE(cauchy, Cauchy, f16, __half)
TD_DEFINE(cauchy, Cauchy, bf16, __nv_bfloat16)
TD_DEFINE(correlate, Correlate, f32, float)
TD_DEFINE(correlate, Correlate, f64, double)
TD_DEFINE(correlate, Correlate, f16, __half)
TD_DEFINE(correlate, Correlate, bf16, __nv_bfloat16)
