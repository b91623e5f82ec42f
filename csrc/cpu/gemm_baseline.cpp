#define TD_VARIANT baseline
#include "gemm.h"

namespace taylorderiv {
const CpuGemm<float> gemm_baseline_f32 = gemm_table<float>;
const CpuGemm<double> gemm_baseline_f64 = gemm_table<double>;
}  // namespace taylorderiv
