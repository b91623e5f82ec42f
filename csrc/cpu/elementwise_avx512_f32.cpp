#if defined(__x86_64__)
#include "isa_avx512.h"

#define TD_SCALAR float
#include "elementwise.h"
TD_DEFINE_KERNELS(kernels_avx512_f32)

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
