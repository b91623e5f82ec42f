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
TD_HD float pow(float x, double p) { return ::powf(x, float(p)); }
TD_HD double pow(double x, double p) { return ::pow(x, p); }
TD_HD bool is_infinite(float x) { return abs(x) == HUGE_VALF; }
TD_HD bool is_infinite(double x) { return abs(x) == HUGE_VAL; }
// exp(z) and exp(z) - 1 for z <= 0, sharing the work.
template <class T>
struct ExpPair {
  T e, m;
};
TD_HD ExpPair<float> exp_pair(float z) { return {exp(z), expm1(z)}; }
TD_HD ExpPair<double> exp_pair(double z) { return {exp(z), expm1(z)}; }
// So close to the smallest number that relative accuracy is lost, or about to be.
TD_HD bool is_tiny(float x) { return abs(x) < 1e-30f; }
TD_HD bool is_tiny(double x) { return abs(x) < 1e-290; }
TD_HD bool any(bool mask) { return mask; }

TD_NAMESPACE_END
