// The layouts and ops that have code of their own: those of the equations that people train on. On a GPU it is the
// fused chain that keeps jets in registers; all others have the code of cuda/chain.cuh. On the CPU it is a pass through
// an activation; all others have the code of cpu/elementwise.h, which goes through one direction after the other.
#pragma once

#include "fixed_layout.h"
#include "unary_ops.h"

// clang-format off
// Orders, negative where collapsed. In one variable: u_xx, with u_t, u_xxx, u_xxxx; in two: u_xx u_yy, with u_t; the
// Laplacian, its square.
#define TD_FIXED_LAYOUTS(X) X(2) X(2, 1) X(3, 1) X(4, 1) X(2, 2) X(2, 2, 1) X(-2, -2) X(-4, -4, -4)
// On the CPU also: all derivatives up to an order, u_xxxx with u_tt, higher ones with u_t, the Laplacian in space.
#define TD_CPU_FIXED_LAYOUTS(X) \
  TD_FIXED_LAYOUTS(X) X(1) X(3) X(4) X(5) X(6) X(8) X(10) X(4, 2) X(5, 1) X(6, 1) X(-2, -2, -2)
#define TD_FIXED_OPS(X) X(Tanh) X(Sin) X(Silu) X(Gelu)
// clang-format on

TD_NAMESPACE_BEGIN

// The first of the layouts is void, for the comma's sake.
template <class, class... Layouts>
struct LayoutList {
  static constexpr int most_directions() {
    int most = 0;
    ((most = Layouts::directions > most ? Layouts::directions : most), ...);
    return most;
  }
  // The index of the one that a jet has, or -1.
  template <class View>
  static int index_of(const View& layout) {
    int index = -1;
    const bool found = ((++index, Layouts::fits(layout)) || ...);
    return found ? index : -1;
  }
};

#define TD_NEXT(...) , FixedLayout<__VA_ARGS__>
using FixedLayouts = LayoutList<void TD_FIXED_LAYOUTS(TD_NEXT)>;
using CpuFixedLayouts = LayoutList<void TD_CPU_FIXED_LAYOUTS(TD_NEXT)>;
#undef TD_NEXT

// Whether an op, by its place in the tables of kernels, is one of those above.
#define TD_IS(Op) || op == Place::Op
constexpr bool is_fixed_op(int op) { return false TD_FIXED_OPS(TD_IS); }
#undef TD_IS

TD_NAMESPACE_END
