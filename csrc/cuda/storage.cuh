// Coefficients in memory: what they are stored as, several adjacent ones in one access, and as numbers to compute with.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "../careful.h"
#include "twin.cuh"

TD_NAMESPACE_BEGIN

TD_HD float widened(float x) { return x; }
TD_HD double widened(double x) { return x; }
TD_HD float widened(__half x) { return __half2float(x); }
// Its bits are a float's first ones. (__bfloat162float is other code for each architecture.)
TD_HD float widened(__nv_bfloat16 x) {
  uint16_t bits;
  std::memcpy(&bits, &x, sizeof(bits));
  const uint32_t wide = uint32_t(bits) << 16;
  float y;
  std::memcpy(&y, &wide, sizeof(y));
  return y;
}

// Of 16-bit numbers: float.
template <class S>
using Widened = decltype(widened(S()));

TD_HD void narrow(double x, float& to) { to = float(x); }
TD_HD void narrow(double x, double& to) { to = x; }
TD_HD void narrow(float x, float& to) { to = x; }
TD_HD void narrow(float x, __half& to) { to = __float2half_rn(x); }
TD_HD void narrow(float x, __nv_bfloat16& to) { to = __float2bfloat16_rn(x); }

// `width` adjacent numbers.
template <class S, int width>
struct Chunk {
  Chunk<S, width / 2> lo, hi;
};
template <class S>
struct Chunk<S, 1> {
  S value;
};

// Between a chunk and a number of type T, Careful<T> or Twin<...>.
template <class S, class T>
TD_HD void convert(const Chunk<S, 1>& from, T& to) {
  to = widened(from.value);
}
template <class S, class T>
TD_HD void convert(const Chunk<S, 1>& from, Careful<T>& to) {
  to.v = widened(from.value);
}
template <class S, int width, class T>
TD_HD void convert(const Chunk<S, width>& from, Twin<T>& to) {
  convert(from.lo, to.lo);
  convert(from.hi, to.hi);
}
template <class T, class S>
TD_HD void convert(const T& from, Chunk<S, 1>& to) {
  narrow(from, to.value);
}
template <class T, class S>
TD_HD void convert(const Careful<T>& from, Chunk<S, 1>& to) {
  narrow(from.v, to.value);
}
template <class T, class S, int width>
TD_HD void convert(const Twin<T>& from, Chunk<S, width>& to) {
  convert(from.lo, to.lo);
  convert(from.hi, to.hi);
}

// What one access moves: CUDA's vector types, the only ones that the compiler takes for one.
template <int bytes>
struct WordOf;
template <>
struct WordOf<2> {
  using type = unsigned short;
};
template <>
struct WordOf<4> {
  using type = unsigned;
};
template <>
struct WordOf<8> {
  using type = uint2;
};
template <>
struct WordOf<16> {
  using type = uint4;
};
template <class S, int width>
using Word = typename WordOf<sizeof(S) * width>::type;

// Coefficient c stands at at[c * stride], as a word.
template <class S, int width, class Number>
struct Load {
  const Word<S, width>* at;
  int64_t stride;
  TD_HD Number operator()(int c) const {
    const Word<S, width> word = at[c * stride];
    Chunk<S, width> chunk;
    memcpy(&chunk, &word, sizeof(chunk));
    Number x;
    convert(chunk, x);
    return x;
  }
};

// Also adds 0 to *not_finite for each number that is finite, NaN otherwise.
template <class S, int width, class Number>
struct Store {
  Word<S, width>* at;
  int64_t stride;
  Number* not_finite;
  TD_HD void operator()(int c, const Number& x) const {
    Chunk<S, width> chunk;
    convert(x, chunk);
    Word<S, width> word;
    memcpy(&word, &chunk, sizeof(chunk));
    at[c * stride] = word;
    *not_finite = *not_finite + x * Number(0.0);
  }
};

TD_NAMESPACE_END
