// Elementary functions under one name for every number type: float and double here, SIMD vectors in cpu/vec.h.
//
// A number type T offers + - * / and comparisons, T(double), select(mask, a, b), and the functions below.
#pragma once

#include "config.h"

#include <cmath>

TD_NAMESPACE_BEGIN

TD_HD float select(bool mask, float a, float b) { return mask ? a : b; }
TD_HD double select(bool mask, double a, double b) { return mask ? a : b; }

// clang-format off
#define TD_ELEMENTARY_FUNCTIONS(X) \
  X(exp) X(exp2) X(expm1) X(log) X(log2) X(log10) X(log1p) \
  X(sin) X(cos) X(tan) X(asin) X(acos) X(atan) X(sinh) X(cosh) X(tanh) X(asinh) X(acosh) X(atanh) \
  X(erf) X(erfc) X(sqrt) X(floor)
#define TD_SCALAR_FUNCTION(name) \
  TD_HD float name(float x) { return ::name##f(x); } \
  TD_HD double name(double x) { return ::name(x); }
TD_ELEMENTARY_FUNCTIONS(TD_SCALAR_FUNCTION)
#undef TD_SCALAR_FUNCTION
// clang-format on

TD_HD float abs(float x) { return ::fabsf(x); }
TD_HD double abs(double x) { return ::fabs(x); }
// A size with the sign that x has, also where it is zero.
TD_HD float with_sign_of(float x, float size) { return ::copysignf(size, x); }
TD_HD double with_sign_of(double x, double size) { return ::copysign(size, x); }
TD_HD float pow(float x, double p) { return ::powf(x, float(p)); }
TD_HD double pow(double x, double p) { return ::pow(x, p); }
TD_HD bool is_infinite(float x) { return abs(x) == HUGE_VALF; }
TD_HD bool is_infinite(double x) { return abs(x) == HUGE_VAL; }
// exp(z) and exp(z) - 1 for z <= 0, sharing the work.
template <class T>
struct ExpPair {
  T e, m;
};
#if defined(__CUDA_ARCH__)
// To 1 ulp, without branches. Near 0 by a polynomial: z + z^2 (1/2 + ...), the best one on [-1/2, 0].
TD_HD ExpPair<float> exp_pair(float z) {
  const float e = exp(z);
  float q = 0.0011642869794741273f;
  q = q * z + 0.008238221518695354f;
  q = q * z + 0.04164993017911911f;
  q = q * z + 0.16666562855243683f;
  q = q * z + 0.5f;
  return {e, z < -0.5f ? e - 1.0f : q * (z * z) + z};
}
#else
TD_HD ExpPair<float> exp_pair(float z) { return {exp(z), expm1(z)}; }
#endif
TD_HD ExpPair<double> exp_pair(double z) { return {exp(z), expm1(z)}; }
// 1 / (1 + e) for 0 <= e <= 1.
template <class T>
TD_HD T inverse_of_one_plus(const T& e) {
  return T(1.0) / (T(1.0) + e);
}
#if defined(__CUDA_ARCH__)
// Without what a division does where it might overflow.
TD_HD float inverse_of_one_plus(float e) {
  const float x = 1.0f + e;
  float r;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x));
  return r * (1.0f - x * r) + r;
}
#endif
template <class T>
struct SinCos {
  T sin, cos;
};
template <class T>
TD_HD SinCos<T> sin_cos(const T& x) {
  return {sin(x), cos(x)};
}
#if defined(__CUDA_ARCH__)
// To 1.5 ulp, without branches: multiples of pi/2, in three parts, are subtracted, and polynomials taken that are the
// best ones on [-pi/4, pi/4]. NaN where that many multiples aren't exact; what isn't finite is done again, with care.
TD_HD SinCos<float> sin_cos(float x) {
  const float k = rintf(x * 0.636619772367581f);
  float r = fmaf(-k, 1.5707963705062866f, x);
  r = fmaf(-k, -4.371138828673793e-08f, r);
  r = fmaf(-k, -1.7151245100058819e-15f, r);
  const float t = r * r;
  const float s =
      fmaf(r * t, fmaf(fmaf(-0.00019582831009756774f, t, 0.008332724682986736f), t, -0.166666641831398f), r);
  float c = fmaf(2.4542870960431173e-05f, t, -0.0013888279208913445f);
  c = fmaf(fmaf(fmaf(c, t, 0.0416666641831398f), t, -0.5f), t, 1.0f);
  const int quadrant = int(k);
  const float sine = quadrant % 2 == 0 ? s : c, cosine = quadrant % 2 == 0 ? c : s;
  const bool near = abs(x) < 48000.0f;
  const float none = HUGE_VALF - HUGE_VALF;
  return {near ? (quadrant & 2) != 0 ? -sine : sine : none, near ? (quadrant + 1 & 2) != 0 ? -cosine : cosine : none};
}
#endif
// So close to the smallest number that relative accuracy is lost, or about to be.
TD_HD bool is_tiny(float x) { return abs(x) < 1e-30f; }
TD_HD bool is_tiny(double x) { return abs(x) < 1e-290; }
TD_HD bool any(bool mask) { return mask; }

TD_NAMESPACE_END
