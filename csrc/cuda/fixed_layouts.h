// The layouts and ops that the fused chain has code for that keeps jets in registers: those of the equations that
// people train on. All others have the code of chain.cuh.
#pragma once

#include <algorithm>

#include "fixed_layout.h"

// clang-format off
// Orders, negative where collapsed. In one variable: u_xx, with u_t, u_xxx, u_xxxx; in two: u_xx u_yy, with u_t; the
// Laplacian, its square.
#define TD_FIXED_LAYOUTS(X) X(2) X(2, 1) X(3, 1) X(4, 1) X(2, 2) X(2, 2, 1) X(-2, -2) X(-4, -4, -4)
#define TD_FIXED_OPS(X) X(Tanh) X(Sin) X(Silu) X(Gelu)
// clang-format on

TD_NAMESPACE_BEGIN

#define TD_DIRECTIONS(...) FixedLayout<__VA_ARGS__>::directions,
inline constexpr int most_fixed_directions = std::max({TD_FIXED_LAYOUTS(TD_DIRECTIONS)});
#undef TD_DIRECTIONS

// The index of a layout among them, or -1.
inline int fixed_layout_index(const PackedLayout& layout) {
  int index = 0;
#define TD_CASE(...)                                        \
  if (FixedLayout<__VA_ARGS__>::fits(layout)) return index; \
  ++index;
  TD_FIXED_LAYOUTS(TD_CASE)
#undef TD_CASE
  return -1;
}

TD_NAMESPACE_END
