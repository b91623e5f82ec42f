// Matrix products of a tile: shared memory times weights, and the weights' gradients. Each warp computes blocks of 32
// rows and up to 32 columns in its registers.
#pragma once

#include "chain_tiling.h"
#include "mma.cuh"

TD_NAMESPACE_BEGIN

// Operands. slot(r, g) is what this thread holds of row r and group g of the summation index k, the thread's row of
// the fragment being r; number(r, k) any number. In a fragment, thread t of each 4 holds k = 2t and 2t + 1 of a group
// where numbers of a row are adjacent, which is one access; else k = t and t + 4, so that no two threads of a warp
// meet in a bank of shared memory.
__device__ __forceinline__ int fragment_row() { return lane() / 4; }
__device__ __forceinline__ int fragment_depth() { return lane() % 4; }

// Rows r with k along the row.
template <class Number>
struct RowOperand {
  const Number* p;
  int stride;
  __device__ __forceinline__ Slot<Number> slot(int r, int g) const {
    using S = Slot<Number>;
    const Number* const row = p + (r + fragment_row()) * stride;
    return *reinterpret_cast<const S*>(row + g * S::group + fragment_depth() * S::numbers);
  }
  __device__ __forceinline__ Number number(int r, int k) const { return p[r * stride + k]; }
};

// Columns r with k along the column.
template <class Number>
struct ColumnOperand {
  const Number* p;
  int stride;
  __device__ __forceinline__ Slot<Number> slot(int r, int g) const {
    const Number* const column = p + (r + fragment_row()) + (g * Slot<Number>::group + fragment_depth()) * stride;
    if constexpr (Slot<Number>::numbers == 2) {
      return {column[0], column[4 * stride]};
    } else {
      return {column[0]};
    }
  }
  __device__ __forceinline__ Number number(int r, int k) const { return p[k * stride + r]; }
};

// Weights in the order in which fragments want them: for each group of k and each 8 rows r, the slots of a warp. A
// warp's read is 256 adjacent bytes.
template <class Number>
struct PackedOperand {
  const Slot<Number>* p;
  int tiles;  // of 8 rows
  __device__ __forceinline__ Slot<Number> slot(int r, int g) const {
    return in_global_memory(p)[(int64_t(g) * tiles + r / 8) * 32 + lane()];
  }
  __device__ __forceinline__ Number number(int r, int k) const {
    using S = Slot<Number>;
    const int64_t slot = (int64_t(k / S::group) * tiles + r / 8) * 32 + r % 8 * 4 + k % S::group / S::numbers;
    return reinterpret_cast<const Number*>(p + slot)[k % S::numbers];
  }
};

// Sums of 32 rows and 8 * tiles columns.
template <class Arithmetic, int tiles>
struct Sums {
  static constexpr int row_tiles = ChainTiling::row_step / Arithmetic::rows;
  typename Arithmetic::Number of[row_tiles][tiles][Arithmetic::sums];

  // f(sum, row, column), relative to the block, for each of them that this thread holds.
  template <class F>
  __device__ __forceinline__ void for_each(const F& f) {
#pragma unroll
    for (int i = 0; i < row_tiles; ++i) {
#pragma unroll
      for (int j = 0; j < tiles; ++j) {
#pragma unroll
        for (int e = 0; e < Arithmetic::sums; ++e)
          f(of[i][j][e], i * Arithmetic::rows + Arithmetic::row(e), j * 8 + Arithmetic::column(e));
      }
    }
  }

  // Adds products of rows row.. of a by rows column.. of b, over the first `groups` groups of the summation index.
  template <class A, class B>
  __device__ __forceinline__ void add_product(const A& a, int row, const B& b, int column, int groups) {
    __syncwarp();                                                       // repair() may have parted the warp's threads
    Slot<typename Arithmetic::Number> next[tiles][Arithmetic::groups];  // of b, read one step ahead: it may be far away
    const auto read = [&](int g) {
#pragma unroll
      for (int j = 0; j < tiles; ++j) {
#pragma unroll
        for (int group = 0; group < Arithmetic::groups; ++group) next[j][group] = b.slot(column + j * 8, g + group);
      }
    };
    read(0);
#pragma unroll 1
    for (int g = 0; g < groups; g += Arithmetic::groups) {
      typename Arithmetic::Right right[tiles];
#pragma unroll
      for (int j = 0; j < tiles; ++j) right[j] = Arithmetic::right([&](int group) { return next[j][group]; });
      if (g + Arithmetic::groups < groups) read(g + Arithmetic::groups);
#pragma unroll
      for (int i = 0; i < row_tiles; ++i) {
        const auto left =
            Arithmetic::left([&](int r, int group) { return a.slot(row + i * Arithmetic::rows + r, g + group); });
#pragma unroll
        for (int j = 0; j < tiles; ++j) Arithmetic::multiply(of[i][j], left, right[j]);
      }
    }
  }

  // The sums that aren't finite, in the first `rows` of the block, once more as float32 has them: start(row, column)
  // plus the product.
  template <class A, class B, class Start>
  __device__ __forceinline__ void repair(const A& a, int row, const B& b, int column, int groups, int rows,
                                         const Start& start) {
    using Number = typename Arithmetic::Number;
    Number not_finite(0);
    for_each([&](Number& sum, int r, int) { not_finite += r < rows ? sum * Number(0) : Number(0); });
    if (not_finite == Number(0)) return;
    for_each([&](Number& sum, int r, int c) {
      if (r >= rows || sum * Number(0) == Number(0)) return;
      sum = start(r, c);
#pragma unroll 1
      for (int k = 0; k < groups * Slot<Number>::group; ++k) sum += a.number(row + r, k) * b.number(column + c, k);
    });
  }
};

// Two adjacent numbers, one access.
template <class Number>
struct alignas(2 * sizeof(Number)) Two {
  Number first, second;
};

// out = a weight (+ out, if adding), and the bias is added to the first rows.
template <class Number>
struct LinearTask {
  const Number* a;
  Number* out;
  int stride;  // of both
  int rows;    // that are in use
  PackedOperand<Number> weight;
  int first_tile, tiles, groups;  // columns of the result by 8, and the summation index
  int columns;                    // that are in use; other columns become zero, like other rows
  const Number* bias;             // or null
  int bias_rows;
  bool adding;
};

template <class Arithmetic, int tiles>
__device__ __noinline__ void linear(const LinearTask<typename Arithmetic::Number>& task) {
  TD_TRACE;
  using Number = typename Arithmetic::Number;
  const int blocks = int(round_up(task.rows, ChainTiling::row_step)) / ChainTiling::row_step;
  const int jobs = blocks * (task.tiles / tiles), warps = blockDim.x / 32;
  const PackedOperand<Number> weight = task.weight;
  const int stride = task.stride, groups = task.groups;
  const bool adding = task.adding;
  for (int job = threadIdx.x / 32; job < jobs; job += warps) {
    const int row = job % blocks * ChainTiling::row_step, column = job / blocks * tiles * 8;
    const int rows = task.rows - row, columns = task.columns - column;  // from here on
    const RowOperand<Number> a{in_shared_memory(task.a), stride};
    Number* const out = in_shared_memory(task.out) + row * stride + column;
    const auto start = [&](int r, int c) { return adding ? out[r * stride + c] : Number(0); };
    Sums<Arithmetic, tiles> sums;
    sums.for_each([&](Number& sum, int r, int c) { sum = start(r, c); });
    sums.add_product(a, row, weight, task.first_tile * 8 + column, groups);
    if constexpr (Arithmetic::splits) {
      sums.repair(a, row, weight, task.first_tile * 8 + column, groups, rows, start);
    }
    if (task.bias != nullptr) {
      const Number* const bias = in_global_memory(task.bias) + column;
      const int bias_rows = task.bias_rows - row;
      sums.for_each([&](Number& sum, int r, int c) { sum += r < bias_rows ? bias[c] : Number(0); });
    }
    sums.for_each([&](Number& sum, int r, int c) { sum = r < rows && c < columns ? sum : Number(0); });
#pragma unroll
    for (int i = 0; i < sums.row_tiles; ++i) {
#pragma unroll
      for (int j = 0; j < tiles; ++j) {
#pragma unroll
        for (int e = 0; e < Arithmetic::sums; e += 2) {
          Number* const to = out + (i * Arithmetic::rows + Arithmetic::row(e)) * stride + j * 8 + Arithmetic::column(e);
          *reinterpret_cast<Two<Number>*>(to) = {sums.of[i][j][e], sums.of[i][j][e + 1]};
        }
      }
    }
  }
}

// sums += a^T b, over the tile's rows: the gradient of a weight. The sums of a thread stand together, in the order of
// weight_gradient_at(): this is global memory.
template <class Number>
struct OuterTask {
  const Number *a, *b;
  int stride;  // of both
  int rows;
  int a_columns;
  int b_tiles;  // columns of b by 8
  Number* sums;
  int first_tile, all_tiles;  // where b's columns are among those of the sums
  bool adding;                // else the sums are set
};

// Which row and column the n-th of the sums belongs to.
template <class Number>
__device__ __forceinline__ void weight_gradient_at(int64_t n, int all_tiles, int& row, int& column) {
  using M = Mma<Number>;
  const int e = n % M::sums, thread = n / M::sums % 32;
  const int64_t tile = n / M::sums / 32;
  row = int(tile / all_tiles) * M::rows + M::row(e, thread);
  column = int(tile % all_tiles) * 8 + M::column(e, thread);
}

template <class Arithmetic, int tiles>
__device__ __noinline__ void outer(const OuterTask<typename Arithmetic::Number>& task) {
  TD_TRACE;
  using Number = typename Arithmetic::Number;
  const int blocks = int(round_up(task.a_columns, ChainTiling::row_step)) / ChainTiling::row_step;
  const int jobs = blocks * (task.b_tiles / tiles), warps = blockDim.x / 32;
  // Rows up to the next multiple are zero.
  const int groups = int(round_up(task.rows, ChainTiling::column_step)) / Slot<Number>::group;
  for (int job = threadIdx.x / 32; job < jobs; job += warps) {
    const int row = job % blocks * ChainTiling::row_step, column = job / blocks * tiles * 8;
    const ColumnOperand<Number> a{in_shared_memory(task.a), task.stride}, b{in_shared_memory(task.b), task.stride};
    Sums<Arithmetic, tiles> sums;
    sums.for_each([&](Number& sum, int, int) { sum = Number(0); });
    sums.add_product(a, row, b, column, groups);
    if constexpr (Arithmetic::splits) {
      sums.repair(a, row, b, column, groups, task.a_columns - row, [](int, int) { return Number(0); });
    }
#pragma unroll
    for (int i = 0; i < sums.row_tiles; ++i) {
#pragma unroll
      for (int j = 0; j < tiles; ++j) {
        const int64_t tile = int64_t(row / Arithmetic::rows + i) * task.all_tiles + task.first_tile + column / 8 + j;
        auto* const to =
            reinterpret_cast<Two<Number>*>(in_global_memory(task.sums) + (tile * 32 + lane()) * Arithmetic::sums);
#pragma unroll
        for (int e = 0; e < Arithmetic::sums; e += 2) {
          Two<Number> sum{sums.of[i][j][e], sums.of[i][j][e + 1]};
          if (task.adding) {
            const Two<Number> before = to[e / 2];
            sum.first += before.first;
            sum.second += before.second;
          }
          to[e / 2] = sum;
        }
      }
    }
  }
}

TD_NAMESPACE_END
