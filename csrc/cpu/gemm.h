// Matrix product of cache-resident tiles, for one instruction set. A tile is what fits the L2 cache.
#pragma once

#include "kernels.h"
#include "number.h"

TD_NAMESPACE_BEGIN

#if defined(__clang__)
#define TD_UNROLL_BY_4 _Pragma("unroll 4")
#else
#define TD_UNROLL_BY_4 _Pragma("GCC unroll 4")
#endif

// Vectors of columns and rows of a register tile: 24 accumulators of 32 registers, or 12 of 16.
#ifdef TD_SIMD_AVX512
inline constexpr int register_columns = 4, register_tile = 24;
#else
inline constexpr int register_columns = 2, register_tile = 12;
#endif

// Numbers of ordinary arithmetic, also where those of a series are careful: in a matrix product 0 * inf is NaN.
template <class S>
#ifdef TD_SIMD_BYTES
using Entries = Number<S>;
#else
using Entries = S;
#endif

template <class S>
TD_HD Entries<S> load_entries(const S* p) {
#ifdef TD_SIMD_BYTES
  return load_number<S>(p);
#else
  return *p;
#endif
}

template <class S>
TD_HD void store_entries(S* p, Entries<S> v) {
#ifdef TD_SIMD_BYTES
  store_number(p, v);
#else
  *p = v;
#endif
}

template <class S>
inline constexpr int panel_of = register_columns * lanes_of<S>;

// What of B (or of all its columns, where it isn't packed in panels) stays in the L1 cache while all rows of A pass by.
#ifdef TD_SIMD_AVX512
inline constexpr int64_t resident_bytes = 32768;
#else
inline constexpr int64_t resident_bytes = 16384;
#endif

// C[m][n] (+)= sum_k A(m, k) B[k][n] for `rows` rows and `vectors` SIMD vectors of columns held in registers; the
// first `biased` rows have a bias.
template <class S, int rows, int vectors>
TD_HD void gemm_registers(const GemmShape& g, int64_t biased, const S* a, const S* b, S* c, const S* bias) {
  using V = Entries<S>;
  constexpr int lanes = lanes_of<S>;
  V sum[rows][vectors];
  TD_UNROLL for (int m = 0; m < rows; ++m) { TD_UNROLL for (int n = 0; n < vectors; ++n) sum[m][n] = V(0.0); }
  const int64_t depth = g.depth, a_row = g.a_row, a_depth = g.a_depth, b_row = g.b_row;
  TD_UNROLL_BY_4 for (int64_t k = 0; k < depth; ++k) {
    V row[vectors];
    TD_UNROLL for (int n = 0; n < vectors; ++n) row[n] = load_entries<S>(b + k * b_row + n * lanes);
    TD_UNROLL for (int m = 0; m < rows; ++m) {
      const V factor(a[m * a_row + k * a_depth]);
      TD_UNROLL for (int n = 0; n < vectors; ++n) sum[m][n] = sum[m][n] + factor * row[n];
    }
  }
  const int64_t c_row = g.c_row;
  const auto store = [&](const auto& added) TD_INLINE_LAMBDA {
    TD_UNROLL for (int m = 0; m < rows; ++m) {
      TD_UNROLL for (int n = 0; n < vectors; ++n) {
        S* const to = c + m * c_row + n * lanes;
        store_entries<S>(to, added(sum[m][n], m, n, to));
      }
    }
  };
  if (g.accumulate) {
    store([&](V v, int, int, const S* to) TD_INLINE_LAMBDA { return v + load_entries<S>(to); });
  } else if (biased <= 0) {
    store([&](V v, int, int, const S*) TD_INLINE_LAMBDA { return v; });
  } else {
    store([&](V v, int m, int n, const S*)
              TD_INLINE_LAMBDA { return m < biased ? v + load_entries<S>(bias + n * lanes) : v; });
  }
}

// Calls f(count, row) for all rows, with counts known to the compiler: as many as the registers hold, and the last ones
// in two equal parts, as few sums at a time wait for each other.
template <int most, class F>
TD_HD void for_rows(int64_t rows, const F& f) {
  int64_t m = 0;
  for (; rows - m == most || rows - m >= 2 * most; m += most) f(std::integral_constant<int, most>{}, m);
  while (m < rows) {
    const int64_t left = rows - m, count = left > most ? (left + 1) / 2 : left;
    [&]<int... i>(std::integer_sequence<int, i...>) TD_INLINE_LAMBDA {
      (void)((count == i + 1 && (f(std::integral_constant<int, i + 1>{}, m), true)) || ...);
    }(std::make_integer_sequence<int, most>{});
    m += count;
  }
}

// Fetches some lines at a time of what will be needed soon.
struct Fetcher {
  const char *next, *end;
  int64_t lines;
  TD_HD void operator()() {
    for (int64_t i = 0; i < lines && next < end; ++i, next += 64) __builtin_prefetch(next, 0, 2);
  }
};

template <class S, int vectors>
void gemm_panel(const GemmShape& g, Fetcher& fetch, const S* a, const S* b, S* c, const S* bias) {
  constexpr int most = register_tile / vectors < 12 ? register_tile / vectors : 12;
  for_rows<most>(g.rows, [&](auto count, int64_t m) TD_INLINE_LAMBDA {
    fetch();
    gemm_registers<S, decltype(count)::value, vectors>(g, g.biased - m, a + m * g.a_row, b, c + m * g.c_row, bias);
  });
}

template <class S>
void gemm(const GemmShape& g, const S* a, const S* b, S* c, const S* bias) {
  constexpr int lanes = lanes_of<S>, panel = panel_of<S>;
  const int64_t fitting = resident_bytes / (g.b_row * int64_t(sizeof(S))), depth = fitting < 48 ? 48 : fitting;
  GemmShape part = g;
  const char* const soon = static_cast<const char*>(g.soon);
  const int64_t tiles = (g.rows * g.columns / (register_tile * lanes) + 1) * ((g.depth + depth - 1) / depth);
  Fetcher fetch{soon, soon + g.soon_bytes, g.soon_bytes / (64 * tiles) + 1};
  for (int64_t k = 0; k < g.depth || k == 0; k += depth, a += depth * g.a_depth, b += depth * g.b_row) {
    part.depth = g.depth - k < depth ? g.depth - k : depth;
    part.accumulate = g.accumulate || k > 0;
    part.biased = k > 0 ? 0 : g.biased;
    const S* columns = b;
    int64_t n = 0;
    const auto bias_at = [&] { return bias == nullptr ? nullptr : bias + n; };
    if (g.rows == 1 && g.b_panel == panel) {  // one row, as of a network's last layer: sums enough, of more columns
      constexpr int more = 8 * lanes;
      for (; n + more <= g.columns; n += more, columns += more) {
        gemm_panel<S, 8>(part, fetch, a, columns, c + n, bias_at());
      }
    }
    for (; n + panel <= g.columns; n += panel, columns += g.b_panel) {
      gemm_panel<S, register_columns>(part, fetch, a, columns, c + n, bias_at());
    }
    if constexpr (register_columns > 2) {
      for (; n + 2 * lanes <= g.columns; n += 2 * lanes, columns += 2 * lanes) {
        gemm_panel<S, 2>(part, fetch, a, columns, c + n, bias_at());
      }
    }
    for (; n < g.columns; n += lanes, columns += lanes) gemm_panel<S, 1>(part, fetch, a, columns, c + n, bias_at());
  }
}

// Of `count` rows the products with one column, summed vector by vector along the depth.
template <class S, int count>
TD_HD void narrow_rows(const GemmShape& g, const S* a, const S* b, S added, S* c) {
  constexpr int lanes = lanes_of<S>;
  Entries<S> sum[count];
  TD_UNROLL for (int m = 0; m < count; ++m) sum[m] = Entries<S>(0.0);
  for (int64_t k = 0; k < g.depth; k += lanes) {
    const Entries<S> column = load_entries<S>(b + k);
    TD_UNROLL for (int m = 0; m < count; ++m) sum[m] = sum[m] + load_entries<S>(a + m * g.a_row + k) * column;
  }
  TD_UNROLL for (int m = 0; m < count; ++m) {
    S part[lanes];
    store_entries<S>(part, sum[m]);
    TD_UNROLL for (int half = lanes / 2; half > 0; half /= 2) {
      TD_UNROLL for (int i = 0; i < half; ++i) part[i] += part[i + half];
    }
    c[m * g.c_row] = part[0] + added;
  }
}

template <class S>
void gemm_narrow(const GemmShape& g, const S* a, const S* b, S* c, const S* bias) {
  constexpr int most = 8;
  for (int64_t i = 0; i < g.rows * g.c_row; ++i) c[i] = S(0);
  for (int64_t n = 0; n < g.columns; ++n) {
    int64_t m = 0;
    const auto rows = [&](auto count) TD_INLINE_LAMBDA {
      const S added = m < g.biased ? bias[n] : S(0);
      narrow_rows<S, decltype(count)::value>(g, a + m * g.a_row, b + n * g.depth, added, c + m * g.c_row + n);
      m += count;
    };
    for (const int64_t end : {g.biased, g.rows}) {
      while (m + most <= end) rows(std::integral_constant<int, most>{});
      while (m < end) rows(std::integral_constant<int, 1>{});
    }
  }
}

template <class S, int vectors>
TD_HD void add_columns(int64_t n, int64_t row, const S* rows, S* to) {
  constexpr int lanes = lanes_of<S>;
  Entries<S> sum[vectors];
  TD_UNROLL for (int v = 0; v < vectors; ++v) sum[v] = Entries<S>(0.0);
  for (int64_t p = 0; p < n; ++p) {
    TD_UNROLL for (int v = 0; v < vectors; ++v) sum[v] = sum[v] + load_entries<S>(rows + p * row + v * lanes);
  }
  TD_UNROLL for (int v = 0; v < vectors; ++v) {
    store_entries<S>(to + v * lanes, load_entries<S>(to + v * lanes) + sum[v]);
  }
}

#undef TD_UNROLL_BY_4

template <class S>
void add_rows(int64_t n, int64_t columns, int64_t row, const S* rows, S* to) {
  constexpr int lanes = lanes_of<S>;
  int64_t c = 0;
  for (; c + 4 * lanes <= columns; c += 4 * lanes) add_columns<S, 4>(n, row, rows + c, to + c);
  for (; c < columns; c += lanes) add_columns<S, 1>(n, row, rows + c, to + c);
}

template <class S>
inline constexpr CpuGemm<S> gemm_table = {&gemm<S>, &gemm_narrow<S>, &add_rows<S>, lanes_of<S>, panel_of<S>};

TD_NAMESPACE_END
