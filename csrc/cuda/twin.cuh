// Two numbers as one, and so four and eight: adjacent elements that a thread reads and writes at once, and whose
// arithmetic is independent. (Halves rather than an array of lanes: loops over lanes take the compiler far longer.)
#pragma once

#include "../math.h"

TD_NAMESPACE_BEGIN

template <class M>
struct TwinMask {
  M lo, hi;
  TD_HD TwinMask operator!() const { return {!lo, !hi}; }
  TD_HD friend TwinMask operator|(const TwinMask& a, const TwinMask& b) { return {M(a.lo | b.lo), M(a.hi | b.hi)}; }
  TD_HD friend TwinMask operator|(const TwinMask& a, bool b) { return {M(a.lo | b), M(a.hi | b)}; }
};

template <class T>
struct Twin {
  using Mask = TwinMask<decltype(T() < T())>;
  T lo, hi;

  Twin() = default;
  TD_HD Twin(const T& lo, const T& hi) : lo(lo), hi(hi) {}
  TD_HD explicit Twin(double value) : lo(value), hi(value) {}

  TD_HD Twin operator-() const { return {-lo, -hi}; }
  TD_HD friend Twin operator+(const Twin& a, const Twin& b) { return {a.lo + b.lo, a.hi + b.hi}; }
  TD_HD friend Twin operator-(const Twin& a, const Twin& b) { return {a.lo - b.lo, a.hi - b.hi}; }
  TD_HD friend Twin operator*(const Twin& a, const Twin& b) { return {a.lo * b.lo, a.hi * b.hi}; }
  TD_HD friend Twin operator/(const Twin& a, const Twin& b) { return {a.lo / b.lo, a.hi / b.hi}; }
  TD_HD friend Mask operator<(const Twin& a, const Twin& b) { return {a.lo < b.lo, a.hi < b.hi}; }
  TD_HD friend Mask operator>(const Twin& a, const Twin& b) { return {a.lo > b.lo, a.hi > b.hi}; }
  TD_HD friend Mask operator<=(const Twin& a, const Twin& b) { return {a.lo <= b.lo, a.hi <= b.hi}; }
  TD_HD friend Mask operator>=(const Twin& a, const Twin& b) { return {a.lo >= b.lo, a.hi >= b.hi}; }
  TD_HD friend Mask operator==(const Twin& a, const Twin& b) { return {a.lo == b.lo, a.hi == b.hi}; }
};

template <class T>
TD_HD Twin<T> select(const typename Twin<T>::Mask& mask, const Twin<T>& a, const Twin<T>& b) {
  return {select(mask.lo, a.lo, b.lo), select(mask.hi, a.hi, b.hi)};
}

#define TD_TWIN_FUNCTION(name)           \
  template <class T>                     \
  TD_HD Twin<T> name(const Twin<T>& x) { \
    return {name(x.lo), name(x.hi)};     \
  }
TD_ELEMENTARY_FUNCTIONS(TD_TWIN_FUNCTION)
TD_TWIN_FUNCTION(abs)
#undef TD_TWIN_FUNCTION

template <class T>
TD_HD Twin<T> with_sign_of(const Twin<T>& x, const Twin<T>& size) {
  return {with_sign_of(x.lo, size.lo), with_sign_of(x.hi, size.hi)};
}
template <class T>
TD_HD Twin<T> pow(const Twin<T>& x, double p) {
  return {pow(x.lo, p), pow(x.hi, p)};
}
template <class T>
TD_HD ExpPair<Twin<T>> exp_pair(const Twin<T>& z) {
  const auto lo = exp_pair(z.lo), hi = exp_pair(z.hi);
  return {{lo.e, hi.e}, {lo.m, hi.m}};
}
template <class T>
TD_HD SinCos<Twin<T>> sin_cos(const Twin<T>& x) {
  const auto lo = sin_cos(x.lo), hi = sin_cos(x.hi);
  return {{lo.sin, hi.sin}, {lo.cos, hi.cos}};
}
template <class T>
TD_HD Twin<T> inverse_of_one_plus(const Twin<T>& e) {
  return {inverse_of_one_plus(e.lo), inverse_of_one_plus(e.hi)};
}
template <class T>
TD_HD typename Twin<T>::Mask is_infinite(const Twin<T>& x) {
  return {is_infinite(x.lo), is_infinite(x.hi)};
}
template <class T>
TD_HD typename Twin<T>::Mask is_tiny(const Twin<T>& x) {
  return {is_tiny(x.lo), is_tiny(x.hi)};
}

// `width` numbers of type T.
template <class T, int width>
struct NumbersOf {
  using type = Twin<typename NumbersOf<T, width / 2>::type>;
};
template <class T>
struct NumbersOf<T, 1> {
  using type = T;
};
template <class T, int width>
using Numbers = typename NumbersOf<T, width>::type;

// Calls f(l) for each set lane l of a mask.
template <class F>
TD_HD int for_each_set(bool mask, const F& f, int l = 0) {
  if (mask) f(l);
  return l + 1;
}
template <class M, class F>
TD_HD int for_each_set(const TwinMask<M>& mask, const F& f, int l = 0) {
  return for_each_set(mask.hi, f, for_each_set(mask.lo, f, l));
}

TD_NAMESPACE_END
