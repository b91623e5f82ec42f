#if defined(__x86_64__)
#include "isa_avx2.h"

#define TD_SCALAR double
#include "elementwise.h"
TD_DEFINE_KERNELS(kernels_avx2_f64)

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
