#if defined(__x86_64__)
#include "isa_avx512.h"

#include "gemm.h"

namespace taylorderiv {
const CpuGemm<float> gemm_avx512_f32 = gemm_table<float>;
const CpuGemm<double> gemm_avx512_f64 = gemm_table<double>;
}  // namespace taylorderiv

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
