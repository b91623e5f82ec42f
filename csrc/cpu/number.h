// The number type that the CPU kernels of one instruction set compute with: a SIMD vector, or one scalar.
#pragma once

#include "vec.h"

TD_NAMESPACE_BEGIN

#ifdef TD_SIMD_BYTES
template <class S>
using Number = Vec<S>;
template <class S>
inline constexpr int lanes_of = Vec<S>::lanes;
template <class S>
TD_HD Vec<S> load_number(const S* p) {
  return Vec<S>::load(p);
}
template <class S>
TD_HD void store_number(S* p, Vec<S> v) {
  v.store(p);
}
template <class Mask>
TD_HD bool lane(Mask mask, int i) {
  return mask[i];
}
#else
template <class S>
using Number = S;
template <class S>
inline constexpr int lanes_of = 1;
template <class S>
TD_HD S load_number(const S* p) {
  return *p;
}
template <class S>
TD_HD void store_number(S* p, S v) {
  *p = v;
}
#endif
TD_HD bool lane(bool mask, int) { return mask; }

TD_NAMESPACE_END
