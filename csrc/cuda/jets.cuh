// A tile's jets of one layer in shared memory, in the order in which a warp's threads hold them: what a matrix product
// leaves in a thread's registers is, apart from the columns that a warp computes, what the next one takes from there.
#pragma once

#include "../series.h"
#include "matmul.cuh"

TD_NAMESPACE_BEGIN

// What a thread reads or writes at once: 16 bytes.
template <class T>
__device__ __forceinline__ T read_16_bytes(const void* at) {
  static_assert(sizeof(T) == 16);
  const uint4 word = *static_cast<const uint4*>(at);
  T value;
  memcpy(&value, &word, sizeof(value));
  return value;
}
template <class T>
__device__ __forceinline__ void write_16_bytes(void* at, const T& value) {
  static_assert(sizeof(T) == 16);
  uint4 word;
  memcpy(&word, &value, sizeof(word));
  *static_cast<uint4*>(at) = word;
}

// Four numbers of a fragment.
template <class Number>
struct Four {
  Number v[4];
};
template <class Number>
__device__ __forceinline__ Four<Number> read_four(const Number* first, const Number* second) {
  if constexpr (sizeof(Number) == sizeof(float)) {
    return read_16_bytes<Four<Number>>(first);
  } else {
    const Two<Number> a = read_16_bytes<Two<Number>>(first), b = read_16_bytes<Two<Number>>(second);
    return {a.first, a.second, b.first, b.second};
  }
}
template <class Number>
__device__ __forceinline__ void write_four(Number* first, Number* second, const Four<Number>& f) {
  if constexpr (sizeof(Number) == sizeof(float)) {
    write_16_bytes(first, f);
  } else {
    write_16_bytes(first, Two<Number>{f.v[0], f.v[1]});
    write_16_bytes(second, Two<Number>{f.v[2], f.v[3]});
  }
}

// Every 8 columns, and of these every coefficient, are 32 * 4 adjacent numbers: two columns of the points p and p + 8
// for each thread. Among a point's threads the places are exchanged so that 8 threads that read or write 16 bytes each
// meet in no bank of shared memory, be it along a row or along a column. Of a float32 thread's four numbers, those of
// the same column are next to each other, which is what left fragments of rows and right fragments of columns want; or,
// if `for_left_columns`, those of the same point, for left fragments of columns.
template <class Number_, int size_, bool for_left_columns = false>
class Jets {
  static constexpr bool is_float = sizeof(Number_) == sizeof(float);
  static constexpr int numbers = 128;  // of a coefficient in 8 columns

 public:
  using Number = Number_;
  using Weight = PackedOperand<Number>;
  static constexpr int size = size_;
  static constexpr bool is_split = false;
  int first;  // of its numbers in shared memory

  __device__ __forceinline__ Number* shared() const { return static_cast<Number*>(shared_memory()) + first; }
  __device__ static int bytes(int columns) { return columns / 8 * size * numbers * int(sizeof(Number)); }

  // Where the number of a point and column stands.
  __device__ static int place(int point, int column, int c) {
    const int fragment = (column / 8 * size + c) * numbers, in_group = column % 8, row = point % 8;
    if constexpr (is_float) {
      const int odd = in_group % 2, lower = point / 8;
      return fragment + (row * 4 + (in_group / 2 ^ (row & 2))) * 4 +
             (for_left_columns ? lower * 2 + odd : odd * 2 + lower);
    } else {
      const int half = in_group / 4;
      return fragment + (half * 32 + row * 4 + (in_group % 4 ^ half ^ (row & 2))) * 2 + point / 8;
    }
  }

  __device__ __forceinline__ void set(int place, Number x) const { shared()[place] = x; }
  __device__ __forceinline__ Number number(int point, int column, int c) const {
    return shared()[place(point, column, c)];
  }

  // Numbers of 8 columns of the rows r = lane() / 4 and r + 8: {(r, k), (r + 8, k), (r, k'), (r + 8, k')} with two
  // columns that the thread has, k and k': 2 t and 2 t + 1 (float64: t and t + 4), t being lane() % 4.
  __device__ __forceinline__ Four<Number> rows(int eight, int c) const {
    const Number* const at = shared() + (eight * size + c) * numbers;
    const int row = lane() / 4, t = lane() % 4, swapped = row & 2;
    if constexpr (is_float) {
      const Four<Number> f = read_four(at + (row * 4 + (t ^ swapped)) * 4, at);
      return for_left_columns ? Four<Number>{f.v[0], f.v[2], f.v[1], f.v[3]} : f;
    } else {
      return read_four(at + (row * 4 + (t ^ swapped)) * 2, at + (32 + row * 4 + (t ^ 1 ^ swapped)) * 2);
    }
  }

  // The four numbers that belong to a fragment of sums, {(r, 2 t), (r, 2 t + 1), (r + 8, 2 t), (r + 8, 2 t + 1)}, in
  // two pieces of 16 bytes (float32: one). in_pieces() is their order there, and its own inverse.
  __device__ __forceinline__ Number* piece(int eight, int c, int n) const {
    Number* const at = shared() + (eight * size + c) * numbers;
    const int row = lane() / 4, t = lane() % 4, swapped = row & 2;
    if constexpr (is_float) {
      return at + (row * 4 + (t ^ swapped)) * 4;
    } else {
      const int half = t / 2;
      return at + (half * 32 + row * 4 + (t % 2 * 2 + n ^ half ^ swapped)) * 2;
    }
  }
  __device__ __forceinline__ static Four<Number> in_pieces(const Number (&d)[4]) {
    if constexpr (is_float && for_left_columns) {
      return {d[0], d[1], d[2], d[3]};
    } else {
      return {d[0], d[2], d[1], d[3]};
    }
  }
  // numbers(c) are such a fragment.
  template <class F>
  __device__ __forceinline__ void store(int eight, const F& numbers) const {
#pragma unroll
    for (int c = 0; c < size; ++c) write_four(piece(eight, c, 0), piece(eight, c, 1), in_pieces(numbers(c)));
  }
  // Starts to copy them there, each coefficient `stride` numbers after the one before.
  template <int stride>
  __device__ __forceinline__ void start_to_load(int eight, const Number* from) const {
#pragma unroll
    for (int n = 0; n < int(sizeof(Number) / sizeof(float)); ++n) {
      Number* const to = piece(eight, 0, n);
      const Number* const half = from + 2 * n;
      for_each<0>(Const<size - 1>{}, [&](auto c) {
        copy_16_bytes_async<c * numbers* int(sizeof(Number)), c * stride* int(sizeof(Number))>(to, half);
      });
    }
  }
  __device__ __forceinline__ Four<Number> load(int eight, int c) const {
    return in_pieces(read_four<Number>(piece(eight, c, 0), piece(eight, c, 1)).v);
  }

  // The same numbers with points as the summation index, of columns 16 n...: points k = t + 4 half and k' = k + 8, of
  // two columns n and n' that the thread has: {(k, n), (k', n), (k, n'), (k', n')}; those for left fragments
  // {(n, k), (n', k), (n, k'), (n', k')}. See column_of().
  __device__ __forceinline__ Four<Number> columns(int n, int half, int c) const {
    const int row = lane() % 4 + 4 * half, g = lane() / 4, swapped = row & 2;
    if constexpr (is_float) {
      const Number* const at = shared() + ((2 * n + g / 4) * size + c) * numbers;
      return read_four(at + (row * 4 + (g % 4 ^ swapped)) * 4, at);
    } else {
      const Number* const at = shared() + (2 * n * size + c) * numbers;
      const int place = (g / 4 * 32 + row * 4 + (g % 4 ^ g / 4 ^ swapped)) * 2;
      const Four<Number> f = read_four(at + place, at + size * numbers + place);
      return for_left_columns ? Four<Number>{f.v[0], f.v[2], f.v[1], f.v[3]} : f;
    }
  }
  // Of 16 columns, the one that is index i of the first (which = 0) or the second fragment of 8.
  __device__ static int column_of(int which, int i) { return is_float ? 2 * i + which : 8 * which + i; }
};

// Which row and column of a product of columns, in parts or not, the e-th sum of a thread belongs to, in the tile (row
// by 16, column by 8).
template <class Number, bool split = false>
__device__ __forceinline__ void product_of_columns_at(int64_t row_tile, int64_t tile, int e, int thread, int& row,
                                                      int& column) {
  using J = Jets<std::conditional_t<split, double, Number>, 1>;  // where columns are in their order
  row = int(row_tile) * 16 + J::column_of(e / 2, thread / 4);
  column = int(tile / 2) * 16 + J::column_of(tile % 2, thread % 4 * 2 + e % 2);
}

// The parts of fragments that an arithmetic takes in one step, from as many Fours as the step has 8 of the summation
// index.
template <class A>
inline constexpr int eights_of_step = sizeof(typename A::Number) == sizeof(float) ? A::groups : 1;

// {(n, k), (n', k), (n, k'), (n', k')} with n' being the row 8 after n.
template <class A, class F>
__device__ __forceinline__ typename A::Left left_of(const F& f) {
  using Number = typename A::Number;
  return A::left([&](int r, int group) -> Slot<Number> {
    if constexpr (sizeof(Number) == sizeof(float)) {
      return {f[group].v[r / 8], f[group].v[2 + r / 8]};
    } else {
      return {f[0].v[2 * group + r / 8]};
    }
  });
}
// {(k, n), (k', n), (k, n'), (k', n')}: that of the columns n, or of n'.
template <class A, class F>
__device__ __forceinline__ typename A::Right right_of(const F& f, int which) {
  using Number = typename A::Number;
  return A::right([&](int group) -> Slot<Number> {
    if constexpr (sizeof(Number) == sizeof(float)) {
      return {f[group].v[2 * which], f[group].v[2 * which + 1]};
    } else {
      return {f[0].v[2 * which + group]};
    }
  });
}

TD_NAMESPACE_END
