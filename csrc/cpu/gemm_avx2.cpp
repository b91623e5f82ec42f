#if defined(__x86_64__)
#include "isa_avx2.h"

#include "gemm.h"

const taylorderiv::CpuGemm<float> taylorderiv::gemm_avx2_f32 = {&taylorderiv::gemm<float>,
                                                                taylorderiv::lanes_of<float>};
const taylorderiv::CpuGemm<double> taylorderiv::gemm_avx2_f64 = {&taylorderiv::gemm<double>,
                                                                 taylorderiv::lanes_of<double>};

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
