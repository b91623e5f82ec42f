// Jets in shared memory, each float32 number as the sum of three bfloat16 numbers, its parts: 24 bits, which are all
// that it has. A product x y is that of six pairs of parts, x_i y_j with i + j <= 2; what is left out is less than
// 2^-25 of it. Whoever writes a number takes it apart, once; those who read it, a warp for each 16 columns, take the
// parts as the fragments that the matrix units want, and need no other instruction. Finite numbers beyond the largest
// of bfloat16, 3.39e38, count as infinite.
#pragma once

#include "jets.cuh"

TD_NAMESPACE_BEGIN

// Of two numbers, three pairs of 16 bits, the first number's in the lower half.
struct Parts {
  static constexpr int count = 3;
  uint32_t of[count];

  __device__ __forceinline__ Parts(float first, float second) {
#pragma unroll
    for (int i = 0; i < count; ++i) {
      of[i] = two_bf16(first, second);
      first -= lower(of[i]);
      second -= upper(of[i]);
    }
  }
  __device__ __forceinline__ static float lower(uint32_t pair) { return float_of(pair << 16); }
  __device__ __forceinline__ static float upper(uint32_t pair) { return float_of(pair & 0xffff0000u); }
  // What an infinity leaves after its first part is NaN.
  __device__ __forceinline__ static float sum(float a, float b, float c) { return a * 0.0f == 0.0f ? a + (b + c) : a; }
};

// Adds the products of several left operands and the right ones, 16 of the summation index, to sums of as many. The
// largest products come last, as the matrix units cut off what they add to a sum; see multiply_all(). read_left(l,
// part, words) and read_right(part, words) read a part of the l-th left operand and of all right ones; if `sparing` of
// registers, one part of the left ones twice.
template <bool sparing, int lefts, int rights, class ReadLeft, class ReadRight>
__device__ __forceinline__ void add_products(float (*const (&sums)[lefts])[4], const ReadLeft& read_left,
                                             const ReadRight& read_right) {
  float products[lefts][rights][4];
  uint32_t left[lefts][4], right[Parts::count][rights][2];
  const auto take_left = [&](int part) {
#pragma unroll
    for (int l = 0; l < lefts; ++l) read_left(l, part, left[l]);
  };
  const auto multiply_by = [&](int part, bool first = false) {
#pragma unroll
    for (int l = 0; l < lefts; ++l) {
#pragma unroll
      for (int r = 0; r < rights; ++r) {
        if (first) {
          set_to_mma_bf16(products[l][r], left[l], right[part][r]);
        } else {
          mma_bf16(products[l][r], left[l], right[part][r]);
        }
      }
    }
  };
  if (sparing) {
    take_left(0);
    read_right(2, right[2]);
    multiply_by(2, true);
  }
  take_left(2);
  read_right(0, right[0]);
  multiply_by(0, !sparing);
  take_left(1);
  read_right(1, right[1]);
  multiply_by(1);
  multiply_by(0);
  take_left(0);
  if (!sparing) {
    read_right(2, right[2]);
    multiply_by(2);
  }
  multiply_by(1);
  multiply_by(0);
#pragma unroll
  for (int l = 0; l < lefts; ++l) {
#pragma unroll
    for (int r = 0; r < rights; ++r) {
#pragma unroll
      for (int e = 0; e < 4; ++e) sums[l][r][e] += products[l][r][e];
    }
  }
}

// A packed weight, its parts in the order of fragments: for each 16 of the summation index and each 16 rows, for each
// part, 16 bytes of every thread, 8 for either 8 rows.
struct SplitOperand {
  static constexpr int step = 16;  // of the summation index
  const float* p;
  int tiles;  // of 8 rows

  struct Words {
    uint32_t of[4];
  };
  // What this thread has of a tile, which is even, and the next one; and how far it is to the next step.
  __device__ __forceinline__ const Words* at(int tile) const {
    return in_global_memory(reinterpret_cast<const Words*>(p)) + tile / 2 * Parts::count * 32 + lane();
  }
  __device__ __forceinline__ int words_of_step() const { return tiles / 2 * Parts::count * 32; }
  // Their right operands.
  __device__ __forceinline__ static void read(const Words* at, uint32_t (*right)[Parts::count][2]) {
#pragma unroll
    for (int part = 0; part < Parts::count; ++part) {
      const Words words = read_16_bytes<Words>(at + part * 32);
#pragma unroll
      for (int n = 0; n < 4; ++n) right[n / 2][part][n % 2] = words.of[n];
    }
  }
  // Where, counted in 16 bits, a part of a number stands.
  __device__ static int64_t place(int tiles, int row, int k, int part) {
    const int thread = row % 8 * 4 + k % 8 / 2;
    return (((int64_t(k / step) * (tiles / 2) + row / 16) * Parts::count + part) * 32 + thread) * 8 + row / 8 % 2 * 4 +
           k % step / 8 * 2 + k % 2;
  }
  __device__ __forceinline__ float number(int row, int k) const {
    const auto part = [&](int i) {
      return float_of(uint32_t(reinterpret_cast<const uint16_t*>(p)[place(tiles, row, k, i)]) << 16);
    };
    return Parts::sum(part(0), part(1), part(2));
  }
};

// Every 8 columns, of these each part, and of that every coefficient, are two blocks of 8 by 8 numbers: of the points
// from 0 and from 8 on. A block's 8 rows, the points, are 16 bytes each.
template <int size_>
class SplitJets {
  static constexpr int block = 32;  // words

 public:
  static constexpr int coefficient_words = 2 * block;  // of 8 columns, as these
  static constexpr int part_words = size_ * coefficient_words, tile_words = Parts::count * part_words;
  using Number = float;
  using Weight = SplitOperand;
  static constexpr int size = size_;
  static constexpr bool is_split = true;
  int first;  // of as many words in shared memory

  __device__ __forceinline__ float* shared() const { return static_cast<float*>(shared_memory()) + first; }

  __device__ static int bytes(int columns) { return columns / 8 * tile_words * 4; }

  // Where, counted in 16 bits, the first part of a number stands.
  __device__ static int place(int point, int column, int c) {
    return column / 8 * (2 * tile_words) + ((c * 2 + point / 8) * block + point % 8 * 4) * 2 + column % 8;
  }
  __device__ __forceinline__ void set(int place, float x) const {
    const Parts parts(x, 0.0f);
    uint16_t* const to = reinterpret_cast<uint16_t*>(shared()) + place;
#pragma unroll
    for (int i = 0; i < Parts::count; ++i) to[i * 2 * part_words] = uint16_t(parts.of[i]);
  }
  __device__ __forceinline__ float number(int point, int column, int c) const {
    const uint16_t* const from = reinterpret_cast<const uint16_t*>(shared()) + place(point, column, c);
    const auto part = [&](int i) { return float_of(uint32_t(from[i * 2 * part_words]) << 16); };
    return Parts::sum(part(0), part(1), part(2));
  }

  // numbers(c) are a fragment's four sums.
  template <class F>
  __device__ __forceinline__ void store(int eight, const F& numbers) const {
    float* const to = shared() + eight * tile_words;
#pragma unroll
    for (int c = 0; c < size; c += 2) {
      uint32_t words[Parts::count][4];
#pragma unroll
      for (int n = 0; n < (c + 1 < size ? 4 : 2); ++n) {
        const auto& d = numbers(c + n / 2);
        const Parts parts(d[n % 2 * 2], d[n % 2 * 2 + 1]);
#pragma unroll
        for (int i = 0; i < Parts::count; ++i) words[i][n] = parts.of[i];
      }
#pragma unroll
      for (int i = 0; i < Parts::count; ++i) {
        float* const of_part = to + i * part_words + c * 2 * block;
        if (c + 1 < size) {
          store_matrices(of_part + lane() * 4, words[i]);
        } else {
#pragma unroll
          for (int n = 0; n < 2; ++n) reinterpret_cast<uint32_t*>(of_part)[n * block + lane()] = words[i][n];
        }
      }
    }
  }

  // What was kept of 8 columns waits where their parts will be: nobody of the warp may store these before all have it.
  __device__ __forceinline__ float* piece(int eight, int c, int) const {
    return shared() + eight * tile_words + (c * 32 + lane()) * 4;
  }
  __device__ __forceinline__ static Four<float> in_pieces(const float (&d)[4]) { return {d[0], d[1], d[2], d[3]}; }
  __device__ __forceinline__ Four<float> load(int eight, int c) const {
    return read_16_bytes<Four<float>>(piece(eight, c, 0));
  }
  // Starts to copy it there, each coefficient `stride` numbers after the one before.
  template <int stride>
  __device__ __forceinline__ void start_to_load(int eight, const float* from) const {
    float* const to = piece(eight, 0, 0);
    for_each<0>(Const<size - 1>{}, [&](auto c) { copy_16_bytes_async<c * 128 * 4, c * stride * 4>(to, from); });
  }

  // Where this thread reads fragments of 16 columns, 16 n and so on, of coefficient c: left ones of rows, left ones of
  // columns, right ones of columns. From part to part it is part_words further, to the next 16 columns next_columns.
  static constexpr int next_columns = 2 * tile_words;
  __device__ __forceinline__ const float* rows_at(int n, int c) const {
    return shared() + (2 * n + lane() / 16) * tile_words + c * 2 * block + lane() % 16 * 4;
  }
  __device__ __forceinline__ const float* left_columns_at(int n, int c) const {
    return shared() + (2 * n + lane() / 8 % 2) * tile_words + (c * 2 + lane() / 16) * block + lane() % 8 * 4;
  }
  // A part of two tiles of 8 columns.
  __device__ __forceinline__ static void right_of_columns(const float* at, uint32_t (*right)[2]) {
    uint32_t words[4];
    load_matrices_transposed(words, at);
#pragma unroll
    for (int e = 0; e < 4; ++e) right[e / 2][e % 2] = words[e];
  }
};

TD_NAMESPACE_END
