#if defined(__x86_64__)
#include "isa_avx2.h"

#include "gemm.h"

namespace taylorderiv {
const CpuGemm<float> gemm_avx2_f32 = {&gemm<float>, &gemm_narrow<float>, &add_rows<float>, lanes_of<float>,
                                      panel_of<float>};
const CpuGemm<double> gemm_avx2_f64 = {&gemm<double>, &gemm_narrow<double>, &add_rows<double>, lanes_of<double>,
                                       panel_of<double>};
}  // namespace taylorderiv

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
