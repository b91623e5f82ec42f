// Ops that networks use: the fused chain has unrolled code for these. Others are right, not fast.
#pragma once

namespace taylorderiv {

inline constexpr int highest_chain_order = 8;  // of this code

// clang-format off
#define TD_CHAIN_OPS(X) \
  X(Tanh) X(Sin) X(Cos) X(Exp) X(Sigmoid) X(Softplus) X(Silu) X(Gelu) X(GeluTanh) X(Elu) X(Relu) X(LeakyRelu)
// clang-format on

}  // namespace taylorderiv
