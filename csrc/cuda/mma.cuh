// Kinds of matrix arithmetic, each with the parts of its fragments that a thread holds.
//
// The matrix units multiply 16 rows by 8 columns. In the summation index they take groups of 8 numbers
// (float64: 4), of which a thread holds a Slot: 8 bytes. Which numbers of the group these are is the operands' choice
// (matmul.cuh), so long as both choose the same: a sum may be taken in any order.
//
// An arithmetic offers
//   Number                the numbers in memory and in sums;
//   rows, groups          of the left operand, that one multiplication takes;
//   Left, Right           fragments; left(slot), right(slot) make them, slot(row, group) and slot(group) being the
//                         thread's slots, counted from its own first row;
//   multiply(sum, l, r)   adds the product to sum, whose numbers are those of row(e) and column(e);
//   splits                a number is a sum of two: infinities have no such representation. Then, instead of
//   multiply(),
//                         first_product(sum, l, r), to which sum is set, second_product() and third_product().
#pragma once

#include "chain.h"
#include "intrinsics.cuh"
#include "storage.cuh"

TD_NAMESPACE_BEGIN

__device__ __forceinline__ int lane() { return threadIdx.x % 32; }

// Two adjacent numbers, one access.
template <class Number>
struct alignas(2 * sizeof(Number)) Two {
  Number first, second;
};

template <class Number>
struct Slot;
template <>
struct alignas(8) Slot<float> {
  static constexpr int group = 8, numbers = 2;
  float first, second;
};
template <>
struct Slot<double> {
  static constexpr int group = 4, numbers = 1;
  double first;
};

__device__ __forceinline__ uint32_t bits_of(float x) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof(bits));
  return bits;
}
__device__ __forceinline__ float float_of(uint32_t bits) {
  float x;
  memcpy(&x, &bits, sizeof(x));
  return x;
}

// What the arithmetics have in common.
template <class Number_>
struct Mma {
  using Number = Number_;
  static constexpr int rows = 16, sums = 4;
  __device__ static int row(int e, int thread = lane()) { return thread / 4 + e / 2 * 8; }
  __device__ static int column(int e, int thread = lane()) { return thread % 4 * 2 + e % 2; }
};

struct Tf32Mma : Mma<float> {
  static constexpr int groups = 1;
  static constexpr bool splits = false;
  struct Left {
    uint32_t part[4];
  };
  struct Right {
    uint32_t part[2];
  };
  template <class F>
  __device__ static Left left(const F& slot) {
    const Slot<float> upper = slot(0, 0), lower = slot(8, 0);
    return {{rounded_to_tf32(upper.first), rounded_to_tf32(lower.first), rounded_to_tf32(upper.second),
             rounded_to_tf32(lower.second)}};
  }
  template <class F>
  __device__ static Right right(const F& slot) {
    const Slot<float> s = slot(0);
    return {{rounded_to_tf32(s.first), rounded_to_tf32(s.second)}};
  }
  __device__ static void multiply(float (&sum)[sums], const Left& l, const Right& r) { mma_tf32(sum, l.part, r.part); }
};

// Each number is the sum of two that TF32 can hold, but for its last bit: x y = X Y + X y' + x' Y + (x' y', left out).
struct SplitTf32Mma : Mma<float> {
  static constexpr int groups = 1;
  static constexpr bool splits = true;
  template <int size>
  struct Parts {
    uint32_t large[size], small[size];
    __device__ __forceinline__ void set(int i, float x) {
      large[i] = bits_of(x) + 0x1000u & 0xffffe000u;  // to the nearest; NaNs may change, but small is one then
      small[i] = bits_of(x - float_of(large[i]));
    }
  };
  using Left = Parts<4>;
  using Right = Parts<2>;

  template <class F>
  __device__ static Left left(const F& slot) {
    const Slot<float> upper = slot(0, 0), lower = slot(8, 0);
    Left l;
    l.set(0, upper.first);
    l.set(1, lower.first);
    l.set(2, upper.second);
    l.set(3, lower.second);
    return l;
  }
  template <class F>
  __device__ static Right right(const F& slot) {
    const Slot<float> s = slot(0);
    Right r;
    r.set(0, s.first);
    r.set(1, s.second);
    return r;
  }
  __device__ static void first_product(float (&sum)[sums], const Left& l, const Right& r) {
    set_to_mma_tf32(sum, l.small, r.large);
  }
  __device__ static void second_product(float (&sum)[sums], const Left& l, const Right& r) {
    mma_tf32(sum, l.large, r.small);
  }
  __device__ static void third_product(float (&sum)[sums], const Left& l, const Right& r) {
    mma_tf32(sum, l.large, r.large);
  }
};

// Numbers are rounded to S, 16 bits.
template <class S>
struct HalfMma : Mma<float> {
  static constexpr int groups = 2;
  static constexpr bool splits = false;
  using Left = Tf32Mma::Left;
  using Right = Tf32Mma::Right;
  __device__ static uint32_t rounded(const Slot<float>& slot) {
    S both[2];
    narrow(slot.first, both[0]);
    narrow(slot.second, both[1]);
    uint32_t bits;
    memcpy(&bits, both, sizeof(bits));
    return bits;
  }
  template <class F>
  __device__ static Left left(const F& slot) {
    return {{rounded(slot(0, 0)), rounded(slot(8, 0)), rounded(slot(0, 1)), rounded(slot(8, 1))}};
  }
  template <class F>
  __device__ static Right right(const F& slot) {
    return {{rounded(slot(0)), rounded(slot(1))}};
  }
  __device__ static void multiply(float (&sum)[sums], const Left& l, const Right& r) {
    if constexpr (std::is_same_v<S, __half>) {
      mma_f16(sum, l.part, r.part);
    } else {
      mma_bf16(sum, l.part, r.part);
    }
  }
};

struct DoubleMma : Mma<double> {
  static constexpr int groups = 2;
  static constexpr bool splits = false;
  struct Left {
    double part[4];
  };
  struct Right {
    double part[2];
  };
  template <class F>
  __device__ static Left left(const F& slot) {
    return {{slot(0, 0).first, slot(8, 0).first, slot(0, 1).first, slot(8, 1).first}};
  }
  template <class F>
  __device__ static Right right(const F& slot) {
    return {{slot(0).first, slot(1).first}};
  }
  __device__ static void multiply(double (&sum)[sums], const Left& l, const Right& r) { mma_f64(sum, l.part, r.part); }
};

// Adds products of several left operands and the right ones to sums of as many. The matrix units cut off what they add
// to a sum: that of three products is therefore added by the float32 units, which round. A sum's products are apart
// from each other, so that one needn't wait for the other.
template <class A, int lefts, int rights>
__device__ __forceinline__ void multiply_all(typename A::Number (*const (&sums)[lefts])[A::sums],
                                             const typename A::Left (&left)[lefts],
                                             const typename A::Right (&right)[rights]) {
  const auto for_each_sum = [&](const auto& f) {
#pragma unroll
    for (int i = 0; i < lefts; ++i) {
#pragma unroll
      for (int j = 0; j < rights; ++j) f(i, j);
    }
  };
  if constexpr (A::splits) {
    typename A::Number parts[lefts][rights][A::sums];
    for_each_sum([&](int i, int j) { A::first_product(parts[i][j], left[i], right[j]); });
    for_each_sum([&](int i, int j) { A::second_product(parts[i][j], left[i], right[j]); });
    for_each_sum([&](int i, int j) { A::third_product(parts[i][j], left[i], right[j]); });
    for_each_sum([&](int i, int j) {
#pragma unroll
      for (int e = 0; e < A::sums; ++e) sums[i][j][e] += parts[i][j][e];
    });
  } else {
    for_each_sum([&](int i, int j) { A::multiply(sums[i][j], left[i], right[j]); });
  }
}

// f(arithmetic) with the one of a chain whose numbers are of that type.
template <class Number, class F>
__device__ __forceinline__ void with_arithmetic(ChainArithmetic arithmetic, const F& f) {
  if constexpr (std::is_same_v<Number, double>) {
    f(DoubleMma{});
  } else {
    switch (arithmetic) {
      case ChainArithmetic::tf32:
        return f(Tf32Mma{});
      case ChainArithmetic::f16:
        return f(HalfMma<__half>{});
      case ChainArithmetic::bf16:
        return f(HalfMma<__nv_bfloat16>{});
      default:
        return f(SplitTf32Mma{});
    }
  }
}

TD_NAMESPACE_END
