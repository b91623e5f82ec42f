#define TD_VARIANT baseline
#include "gemm.h"

namespace taylorderiv {
const CpuGemm<float> gemm_baseline_f32 = {&gemm<float>, &gemm_narrow<float>, &add_rows<float>, lanes_of<float>,
                                          panel_of<float>};
const CpuGemm<double> gemm_baseline_f64 = {&gemm<double>, &gemm_narrow<double>, &add_rows<double>, lanes_of<double>,
                                           panel_of<double>};
}  // namespace taylorderiv
