// Matrix product of cache-resident tiles, for one instruction set. A tile is what fits the L2 cache.
#pragma once

#include "kernels.h"
#include "number.h"

TD_NAMESPACE_BEGIN

// Vectors of columns and rows of a register tile: 24 accumulators of 32 registers, or 12 of 16.
#ifdef TD_SIMD_AVX512
inline constexpr int register_columns = 4, register_tile = 24;
#else
inline constexpr int register_columns = 2, register_tile = 12;
#endif

template <class S>
inline constexpr int panel_of = register_columns * lanes_of<S>;

// C[m][n] (+)= sum_k A(m, k) B[k][n] for `rows` rows and `vectors` SIMD vectors of columns held in registers.
template <class S, int rows, int vectors>
TD_HD void gemm_registers(const GemmShape& g, const S* a, const S* b, S* c) {
  using V = Number<S>;
  constexpr int lanes = lanes_of<S>;
  V sum[rows][vectors];
  TD_UNROLL for (int m = 0; m < rows; ++m) { TD_UNROLL for (int n = 0; n < vectors; ++n) sum[m][n] = V(0.0); }
  for (int64_t k = 0; k < g.depth; ++k) {
    V row[vectors];
    TD_UNROLL for (int n = 0; n < vectors; ++n) row[n] = load_number<S>(b + k * g.b_row + n * lanes);
    TD_UNROLL for (int m = 0; m < rows; ++m) {
      const V factor(a[m * g.a_row + k * g.a_depth]);
      TD_UNROLL for (int n = 0; n < vectors; ++n) sum[m][n] = sum[m][n] + factor * row[n];
    }
  }
  TD_UNROLL for (int m = 0; m < rows; ++m) {
    TD_UNROLL for (int n = 0; n < vectors; ++n) {
      S* const to = c + m * g.c_row + n * lanes;
      store_number(to, g.accumulate ? load_number<S>(to) + sum[m][n] : sum[m][n]);
    }
  }
}

template <class S, int vectors>
void gemm_panel(const GemmShape& g, const S* a, const S* b, S* c) {
  constexpr int rows = register_tile / vectors < 12 ? register_tile / vectors : 12;
  int64_t m = 0;
  for (; m + rows <= g.rows; m += rows) gemm_registers<S, rows, vectors>(g, a + m * g.a_row, b, c + m * g.c_row);
  for (; m + 3 <= g.rows; m += 3) gemm_registers<S, 3, vectors>(g, a + m * g.a_row, b, c + m * g.c_row);
  for (; m < g.rows; ++m) gemm_registers<S, 1, vectors>(g, a + m * g.a_row, b, c + m * g.c_row);
}

// Columns [n, n + vectors) in panels of B that stay in the L1 cache while all rows of A pass by.
template <class S, int vectors>
void gemm_columns(const GemmShape& g, const S* a, const S* b, S* c) {
  constexpr int64_t depth = 32768 / (vectors * int(sizeof(Number<S>)));
  GemmShape part = g;
  for (int64_t k = 0; k < g.depth || k == 0; k += depth) {
    part.depth = g.depth - k < depth ? g.depth - k : depth;
    part.accumulate = g.accumulate || k > 0;
    gemm_panel<S, vectors>(part, a + k * g.a_depth, b + k * g.b_row, c);
  }
}

template <class S>
void gemm(const GemmShape& g, const S* a, const S* b, S* c) {
  constexpr int lanes = lanes_of<S>, panel = panel_of<S>;
  int64_t n = 0;
  for (; n + panel <= g.columns; n += panel, b += g.b_panel) gemm_columns<S, register_columns>(g, a, b, c + n);
  if constexpr (register_columns > 2) {
    for (; n + 2 * lanes <= g.columns; n += 2 * lanes, b += 2 * lanes) gemm_columns<S, 2>(g, a, b, c + n);
  }
  for (; n < g.columns; n += lanes, b += lanes) gemm_columns<S, 1>(g, a, b, c + n);
}

TD_NAMESPACE_END
