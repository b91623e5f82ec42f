// A number whose exact zeros annihilate: 0 * inf = 0, since a series simply has no such term.
//
// Where a result overflows or a derivative is infinite, ordinary arithmetic multiplies the infinity by the coefficients
// that vanish and invents NaNs. The kernels redo such elements with this type.
#pragma once

#include "math.h"

TD_NAMESPACE_BEGIN

template <class S>
struct Careful {
  S v;
  Careful() = default;
  TD_HD explicit Careful(double v) : v(S(v)) {}
  TD_HD static Careful of(S v) {
    Careful c;
    c.v = v;
    return c;
  }
  TD_HD explicit operator double() const { return double(v); }
  TD_HD Careful operator-() const { return of(-v); }
  TD_HD friend Careful operator+(Careful a, Careful b) { return of(a.v + b.v); }
  TD_HD friend Careful operator-(Careful a, Careful b) { return of(a.v - b.v); }
  TD_HD friend Careful operator*(Careful a, Careful b) {
    const bool annihilated = (a.v == 0 && b.v == b.v) || (b.v == 0 && a.v == a.v);  // 0 * NaN stays NaN
    return of(annihilated ? S(0) : a.v * b.v);
  }
  TD_HD friend Careful operator/(Careful a, Careful b) { return of(a.v / b.v); }
  TD_HD friend bool operator<(Careful a, Careful b) { return a.v < b.v; }
  TD_HD friend bool operator>(Careful a, Careful b) { return a.v > b.v; }
  TD_HD friend bool operator<=(Careful a, Careful b) { return a.v <= b.v; }
  TD_HD friend bool operator>=(Careful a, Careful b) { return a.v >= b.v; }
  TD_HD friend bool operator==(Careful a, Careful b) { return a.v == b.v; }
};

template <class S>
TD_HD Careful<S> select(bool mask, Careful<S> a, Careful<S> b) {
  return mask ? a : b;
}
template <class S>
TD_HD ExpPair<Careful<S>> exp_pair(Careful<S> z) {
  const ExpPair<S> p = exp_pair(z.v);
  return {Careful<S>::of(p.e), Careful<S>::of(p.m)};
}
template <class S>
TD_HD Careful<S> with_sign_of(Careful<S> x, Careful<S> size) {
  return Careful<S>::of(with_sign_of(x.v, size.v));
}
template <class S>
TD_HD Careful<S> pow(Careful<S> x, double p) {
  return Careful<S>::of(pow(x.v, p));
}
template <class S>
TD_HD bool is_infinite(Careful<S> x) {
  return is_infinite(x.v);
}
template <class S>
TD_HD bool is_tiny(Careful<S> x) {
  return is_tiny(x.v);
}

#define TD_CAREFUL_FUNCTION(name)       \
  template <class S>                    \
  TD_HD Careful<S> name(Careful<S> x) { \
    return Careful<S>::of(name(x.v));   \
  }
TD_ELEMENTARY_FUNCTIONS(TD_CAREFUL_FUNCTION)
TD_CAREFUL_FUNCTION(abs)
#undef TD_CAREFUL_FUNCTION

TD_NAMESPACE_END
