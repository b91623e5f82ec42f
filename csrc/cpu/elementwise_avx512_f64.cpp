#if defined(__x86_64__)
#include "isa_avx512.h"

#define TD_SCALAR double
#include "elementwise.h"
TD_DEFINE_KERNELS(kernels_avx512_f64)

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
