// A series in memory that neighbouring threads interleave, so that a warp's accesses coalesce.
#pragma once

#include "../series.h"

#include <cstdint>

TD_NAMESPACE_BEGIN

template <class T>
struct Strided {
  T* first;
  int64_t stride;
  TD_HD T& operator[](int k) const { return first[k * stride]; }
  TD_HD Strided operator+(int k) const { return {first + k * stride, stride}; }
};

TD_NAMESPACE_END
