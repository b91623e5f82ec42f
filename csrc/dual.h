// Dual numbers v + d eps, eps^2 = 0: the derivative of a backward pass along a direction (the double backward).
#pragma once

#include "math.h"

TD_NAMESPACE_BEGIN

template <class S>
struct Dual {
  S v, d;
  Dual() = default;
  TD_HD explicit Dual(double v) : v(S(v)), d(S(0.0)) {}
  TD_HD Dual(S v, S d) : v(v), d(d) {}
  TD_HD Dual operator-() const { return {-v, -d}; }
  TD_HD friend Dual operator+(const Dual& a, const Dual& b) { return {a.v + b.v, a.d + b.d}; }
  TD_HD friend Dual operator-(const Dual& a, const Dual& b) { return {a.v - b.v, a.d - b.d}; }
  TD_HD friend Dual operator*(const Dual& a, const Dual& b) { return {a.v * b.v, a.v * b.d + a.d * b.v}; }
  TD_HD friend Dual operator/(const Dual& a, const Dual& b) {
    const S quotient = a.v / b.v;
    return {quotient, (a.d - quotient * b.d) / b.v};
  }
  TD_HD friend bool operator>=(const Dual& a, const Dual& b) { return a.v >= b.v; }
  TD_HD friend bool operator>(const Dual& a, const Dual& b) { return a.v > b.v; }
};

template <class S>
TD_HD Dual<S> select(bool mask, const Dual<S>& a, const Dual<S>& b) {
  return mask ? a : b;
}

template <class S>
TD_HD bool is_infinite(const Dual<S>& x) {
  return is_infinite(x.v);
}
template <class S>
TD_HD bool is_tiny(const Dual<S>& x) {
  return is_tiny(x.v);
}

TD_NAMESPACE_END
