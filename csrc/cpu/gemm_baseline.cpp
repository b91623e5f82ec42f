#define TD_VARIANT baseline
#include "gemm.h"

const taylorderiv::CpuGemm<float> taylorderiv::gemm_baseline_f32 = {&taylorderiv::gemm<float>, 1};
const taylorderiv::CpuGemm<double> taylorderiv::gemm_baseline_f64 = {&taylorderiv::gemm<double>, 1};
