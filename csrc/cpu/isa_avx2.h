// Compile what follows for AVX2 with FMA. Standard headers come first: their inline functions must stay baseline code.
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#define TD_VARIANT avx2
#define TD_SIMD_AVX2
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,bmi2"))), apply_to = function)
#else
#pragma GCC target("avx2,fma,bmi2")
#endif
