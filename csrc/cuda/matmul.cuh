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
  __device__ __forceinline__ const Slot<Number>* place(int r, int g) const {
    return in_global_memory(p) + (int64_t(g) * tiles + r / 8) * 32 + lane();
  }
  __device__ __forceinline__ Number number(int r, int k) const {
    using S = Slot<Number>;
    const int64_t slot = (int64_t(k / S::group) * tiles + r / 8) * 32 + r % 8 * 4 + k % S::group / S::numbers;
    return reinterpret_cast<const Number*>(p + slot)[k % S::numbers];
  }
};

// How a warp reads its right operand, of 8 * tiles columns from `column` on, step by step along the summation index. A
// step is as many groups as one multiplication takes; take() has those of the next one in `slots`.

// From shared memory, a step ahead of its use.
template <class Arithmetic, int tiles>
class StepsOfColumns {
  using Number = typename Arithmetic::Number;

 public:
  __device__ __forceinline__ StepsOfColumns(const ColumnOperand<Number>& b, int column, int groups)
      : b_(b), column_(column), left_(groups) {
    read();
  }
  __device__ __forceinline__ void take(Slot<Number> (&slots)[tiles][Arithmetic::groups]) {
#pragma unroll
    for (int j = 0; j < tiles; ++j) {
#pragma unroll
      for (int group = 0; group < Arithmetic::groups; ++group) slots[j][group] = next_[j][group];
    }
    at_ += Arithmetic::groups;
    left_ -= Arithmetic::groups;
    if (left_ > 0) read();
  }

 private:
  __device__ __forceinline__ void read() {
#pragma unroll
    for (int j = 0; j < tiles; ++j) {
#pragma unroll
      for (int group = 0; group < Arithmetic::groups; ++group) next_[j][group] = b_.slot(column_ + j * 8, at_ + group);
    }
  }
  const ColumnOperand<Number> b_;
  const int column_;
  int at_ = 0, left_;
  Slot<Number> next_[tiles][Arithmetic::groups];
};

// Packed weights by way of shared memory, several steps ahead: they may come from far away. Each thread copies what
// itself will read, so that nobody waits for another. `ring` is the thread's own memory: of the warp's, every 32nd
// slot.
template <class Arithmetic, int tiles>
class StagedSteps {
  using Number = typename Arithmetic::Number;
  using S = Slot<Number>;
  static constexpr int step = tiles * Arithmetic::groups, steps = ChainTiling::ring_slots / step;
  static_assert(steps >= 2 && steps * step == ChainTiling::ring_slots);

 public:
  __device__ __forceinline__ StagedSteps(S* ring, const PackedOperand<Number>& b, int column, int groups)
      : ring_(in_shared_memory(ring)), from_(b.place(column, 0)), group_(b.tiles * 32), left_(groups) {
#pragma unroll
    for (int i = 0; i < steps - 1; ++i) copy(i);
  }
  __device__ __forceinline__ void take(S (&slots)[tiles][Arithmetic::groups]) {
    wait_for_copies<steps - 2>();
    const S* const at = ring_ + at_ * step * 32;
#pragma unroll
    for (int j = 0; j < tiles; ++j) {
#pragma unroll
      for (int group = 0; group < Arithmetic::groups; ++group) {
        slots[j][group] = at[(j * Arithmetic::groups + group) * 32];
      }
    }
    copy((at_ + steps - 1) % steps);  // to where the step before this one was
    at_ = (at_ + 1) % steps;
  }

 private:
  __device__ __forceinline__ void copy(int to_step) {
    S* const to = ring_ + to_step * step * 32;
    if (left_ > 0) {
#pragma unroll
      for (int group = 0; group < Arithmetic::groups; ++group) {
#pragma unroll
        for (int j = 0; j < tiles; ++j) {
          copy_async<8>(to + (j * Arithmetic::groups + group) * 32, from_ + j * 32);
        }
        from_ += group_;
      }
      left_ -= Arithmetic::groups;
    }
    close_group_of_copies();  // an empty one, too: the wait counts them
  }
  S* const ring_;
  const S* from_;
  const int group_;  // slots from one to the next
  int at_ = 0, left_;
};

// Sums of 16 * row_tiles rows and 8 * tiles columns.
template <class Number, int row_tiles_, int tiles>
struct Sums {
  using M = Mma<Number>;
  static constexpr int row_tiles = row_tiles_;
  Number of[row_tiles][tiles][M::sums];

  // f(sum, row, column), relative to the first ones, for each of them that this thread holds.
  template <class F>
  __device__ __forceinline__ void for_each(const F& f) {
#pragma unroll
    for (int i = 0; i < row_tiles; ++i) {
#pragma unroll
      for (int j = 0; j < tiles; ++j) {
#pragma unroll
        for (int e = 0; e < M::sums; ++e) f(of[i][j][e], i * M::rows + M::row(e), j * 8 + M::column(e));
      }
    }
  }

  // Adds products of rows row.. of a by the right operand that `steps` reads, over the first `groups` groups of the
  // summation index.
  template <class Arithmetic, class A, class Steps>
  __device__ __forceinline__ void add_product(const A& a, int row, Steps steps, int groups) {
    __syncwarp();  // repair() may have parted the warp's threads
#pragma unroll 1
    for (int g = 0; g < groups; g += Arithmetic::groups) {
      Slot<Number> slots[tiles][Arithmetic::groups];
      steps.take(slots);
      typename Arithmetic::Right right[tiles];
#pragma unroll
      for (int j = 0; j < tiles; ++j) right[j] = Arithmetic::right([&](int group) { return slots[j][group]; });
#pragma unroll
      for (int i = 0; i < row_tiles; ++i) {
        const typename Arithmetic::Left left[] = {
            Arithmetic::left([&](int r, int group) { return a.slot(row + i * M::rows + r, g + group); })};
        multiply_all<Arithmetic>({of[i]}, left, right);
      }
    }
  }

  // The sums that aren't finite, in the first `rows`, once more as float32 has them: start, a matrix of `stride` or
  // null, plus the product.
  template <class A, class B>
  __device__ __forceinline__ void repair(const A& a, int row, const B& b, int column, int groups, int rows,
                                         const Number* start, int stride) {
    Number not_finite(0);
    for_each([&](Number& sum, int r, int) { not_finite += r < rows ? sum * Number(0) : Number(0); });
    if (not_finite == Number(0)) return;
    Sums copy = *this;  // in memory, which is indexed there
    repair_in_memory(copy, a, row, b, column, groups * Slot<Number>::group, rows, start, stride);
    *this = copy;
  }

 private:
  template <class A, class B>
  __device__ __noinline__ static void repair_in_memory(Sums& sums, const A& a, int row, const B& b, int column,
                                                       int depth, int rows, const Number* start, int stride) {
#pragma unroll 1
    for (int n = 0; n < row_tiles * tiles * M::sums; ++n) {
      const int i = n / (tiles * M::sums), j = n / M::sums % tiles, e = n % M::sums;
      const int r = i * M::rows + M::row(e), c = j * 8 + M::column(e);
      Number& sum = sums.of[i][j][e];
      if (r >= rows || sum * Number(0) == Number(0)) continue;
      sum = start == nullptr ? Number(0) : start[r * stride + c];
#pragma unroll 1
      for (int k = 0; k < depth; ++k) sum += a.number(row + r, k) * b.number(column + c, k);
    }
  }
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
  Slot<Number>* ring;  // this thread's, for the weight
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
    const int weight_row = task.first_tile * 8 + column;
    Sums<Number, ChainTiling::row_step / Arithmetic::rows, tiles> sums;
    sums.for_each([&](Number& sum, int r, int c) { sum = start(r, c); });
    sums.template add_product<Arithmetic>(a, row, StagedSteps<Arithmetic, tiles>(task.ring, weight, weight_row, groups),
                                          groups);
    if constexpr (Arithmetic::splits) {
      sums.repair(a, row, weight, weight_row, groups, rows, adding ? out : nullptr, stride);
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
    Sums<Number, ChainTiling::row_step / Arithmetic::rows, tiles> sums;
    sums.for_each([&](Number& sum, int, int) { sum = Number(0); });
    sums.template add_product<Arithmetic>(a, row, StepsOfColumns<Arithmetic, tiles>(b, column, groups), groups);
    if constexpr (Arithmetic::splits) {
      sums.repair(a, row, b, column, groups, task.a_columns - row, static_cast<const Number*>(nullptr), 0);
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
