// The number type that the CPU kernels of one instruction set compute with: a SIMD vector, or one careful scalar.
#pragma once

#include "../careful.h"
#include "vec.h"

TD_NAMESPACE_BEGIN

// Computing in C, coefficients are stored in S: float or double, C at least as wide.
#ifdef TD_SIMD_BYTES
template <class C>
using Number = Vec<C>;
template <class C>
inline constexpr int lanes_of = Vec<C>::lanes;
template <class C, class S>
TD_HD Vec<C> load_number(const S* p) {
  return Vec<C>::load(p);
}
template <class C, class S>
TD_HD void store_number(S* p, Vec<C> v) {
  v.store(p);
}
template <class Mask>
TD_HD bool lane(Mask mask, int i) {
  return mask[i];
}
#else
template <class C>
using Number = Careful<C>;
template <class C>
inline constexpr int lanes_of = 1;
template <class C, class S>
TD_HD Careful<C> load_number(const S* p) {
  return Careful<C>::of(C(*p));
}
template <class C, class S>
TD_HD void store_number(S* p, Careful<C> v) {
  *p = S(v.v);
}
#endif
TD_HD bool lane(bool mask, int) { return mask; }

TD_NAMESPACE_END
