// Compile what follows for AVX-512. Standard headers come first: their inline functions must stay baseline code.
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#define TD_VARIANT avx512
#define TD_SIMD_AVX512
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512dq,avx512vl,avx512bw,avx2,fma,bmi2"))), \
                             apply_to = function)
#else
#pragma GCC target("avx512f,avx512dq,avx512vl,avx512bw,avx2,fma,bmi2,prefer-vector-width=512")
#endif
