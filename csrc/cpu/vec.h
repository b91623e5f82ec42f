// A SIMD vector as a number type: GCC/Clang vector extensions, with SLEEF (1 ulp) for the elementary functions.
//
// SLEEF is part of PyTorch's CPU library, which exports it; only its symbols are used.
#pragma once

#include "../math.h"

#include <cstdint>
#include <cstring>
#include <utility>

#if defined(TD_SIMD_AVX512)
#define TD_SIMD_BYTES 64
#define TD_SLEEF(name, precision) Sleef_##name##f16_##precision, Sleef_##name##d8_##precision
#elif defined(TD_SIMD_AVX2)
#define TD_SIMD_BYTES 32
#define TD_SLEEF(name, precision) Sleef_##name##f8_##precision##avx2, Sleef_##name##d4_##precision##avx2
#endif

#ifdef TD_SIMD_BYTES

#include <immintrin.h>

TD_NAMESPACE_BEGIN

template <class S>
struct RawVector;
template <>
struct RawVector<float> {
  typedef float type __attribute__((vector_size(TD_SIMD_BYTES)));
};
template <>
struct RawVector<double> {
  typedef double type __attribute__((vector_size(TD_SIMD_BYTES)));
};

template <class S>
struct Vec {
  using Raw = typename RawVector<S>::type;
  static constexpr int lanes = TD_SIMD_BYTES / sizeof(S);
  // The comparison result: all bits of a lane set or clear.
  struct Mask {
    using Bits = decltype(Raw{} < Raw{});
    Bits bits;
    TD_HD bool operator[](int lane) const { return bits[lane] != 0; }
    TD_HD friend Mask operator|(Mask a, Mask b) { return {a.bits | b.bits}; }
    TD_HD friend Mask operator|(Mask a, bool b) { return b ? Mask{a.bits == a.bits} : a; }
    TD_HD Mask operator!() const { return {~bits}; }
  };

  Raw raw;
  Vec() = default;
  TD_HD Vec(Raw raw) : raw(raw) {}
  TD_HD explicit Vec(double value) : raw(broadcast(S(value))) {}

  // Not `value + Raw{}`, which loses the sign of zero; nor lane by lane, which GCC makes two instructions of for
  // doubles.
  TD_HD static Raw broadcast(S value) { return filled(value, std::make_integer_sequence<int, lanes>{}); }
  template <int... i>
  TD_HD static Raw filled(S value, std::integer_sequence<int, i...>) {
    return Raw{(void(i), value)...};
  }
  TD_HD static Vec load(const S* p) {
    Vec v;
    std::memcpy(&v.raw, p, sizeof(Raw));
    return v;
  }
  TD_HD void store(S* p) const { std::memcpy(p, &raw, sizeof(Raw)); }
  // From and to another floating-point type.
  template <class Other>
  TD_HD static Vec load(const Other* p) {
    typedef Other Stored __attribute__((vector_size(lanes * sizeof(Other))));
    Stored stored;
    std::memcpy(&stored, p, sizeof(stored));
    return __builtin_convertvector(stored, Raw);
  }
  template <class Other>
  TD_HD void store(Other* p) const {
    typedef Other Stored __attribute__((vector_size(lanes * sizeof(Other))));
    const Stored stored = __builtin_convertvector(raw, Stored);
    std::memcpy(p, &stored, sizeof(stored));
  }

  TD_HD Vec operator-() const { return -raw; }
  TD_HD friend Vec operator+(Vec a, Vec b) { return a.raw + b.raw; }
  TD_HD friend Vec operator-(Vec a, Vec b) { return a.raw - b.raw; }
  TD_HD friend Vec operator*(Vec a, Vec b) { return a.raw * b.raw; }
  TD_HD friend Vec operator/(Vec a, Vec b) { return a.raw / b.raw; }
  TD_HD friend Mask operator<(Vec a, Vec b) { return {a.raw < b.raw}; }
  TD_HD friend Mask operator>(Vec a, Vec b) { return {a.raw > b.raw}; }
  TD_HD friend Mask operator<=(Vec a, Vec b) { return {a.raw <= b.raw}; }
  TD_HD friend Mask operator>=(Vec a, Vec b) { return {a.raw >= b.raw}; }
  TD_HD friend Mask operator==(Vec a, Vec b) { return {a.raw == b.raw}; }
};

template <class S>
TD_HD Vec<S> select(typename Vec<S>::Mask mask, Vec<S> a, Vec<S> b) {
  return mask.bits ? a.raw : b.raw;
}

// Whether any lane is set.
template <class Mask>
  requires requires(Mask m) { m.bits; }
TD_HD bool any(Mask mask) {
#ifdef TD_SIMD_AVX512
  return _mm512_test_epi64_mask((__m512i)mask.bits, (__m512i)mask.bits) != 0;
#else
  return !_mm256_testz_si256((__m256i)mask.bits, (__m256i)mask.bits);
#endif
}

template <class S>
TD_HD Vec<S> abs(Vec<S> x) {
  using Bits = typename Vec<S>::Mask::Bits;
  return typename Vec<S>::Raw((Bits)x.raw & ~(Bits)Vec<S>(-0.0).raw);
}
template <class S>
TD_HD Vec<S> with_sign_of(Vec<S> x, Vec<S> size) {
  using Bits = typename Vec<S>::Mask::Bits;
  const Bits sign = (Bits)Vec<S>(-0.0).raw;
  return typename Vec<S>::Raw(((Bits)size.raw & ~sign) | ((Bits)x.raw & sign));
}
template <class S>
TD_HD auto is_infinite(Vec<S> x) {
  return abs(x) == Vec<S>(HUGE_VAL);
}
template <class S>
TD_HD auto is_tiny(Vec<S> x) {
  return abs(x) < Vec<S>(sizeof(S) == 4 ? 1e-30 : 1e-290);
}

// The polynomials q of degrees 6 and 11 closest to (exp(r) - 1) / r for |r| <= ln 2 / 2, by Remez' algorithm: relative
// errors of 2^-32 and 2^-61. Summed in pairs, as a long chain of sums would be waited for.
TD_HD Vec<float> exp_quotient(Vec<float> r) {
  using V = Vec<float>;
  const V r2 = r * r;
  const V low = (V(1.0) + V(0x1.00000028190bdp-1) * r) + r2 * (V(0x1.555554c5f3de9p-3) + V(0x1.5554ada56fee6p-5) * r);
  const V high = (V(0x1.1111a6840bc4dp-7) + V(0x1.6d7491fa2bd31p-10) * r) + r2 * V(0x1.a019e85a48f03p-13);
  return low + r2 * r2 * high;
}
TD_HD Vec<double> exp_quotient(Vec<double> r) {
  using V = Vec<double>;
  const V r2 = r * r, r4 = r2 * r2;
  const V low = (V(1.0) + V(0.5) * r) + r2 * (V(0x1.555555555555ap-3) + V(0x1.555555555553cp-5) * r);
  const V middle = (V(0x1.111111110f258p-7) + V(0x1.6c16c16c1f58cp-10) * r) +
                   r2 * (V(0x1.a01a01b131334p-13) + V(0x1.a01a017bbe536p-16) * r);
  const V high = (V(0x1.71ddf59f4f9b5p-19) + V(0x1.27e5344107929p-22) * r) +
                 r2 * (V(0x1.af62d731611ddp-26) + V(0x1.1eed890ea231dp-29) * r);
  return low + r4 * (middle + r4 * high);
}

// z = n ln 2 + r with |r| <= ln 2 / 2, and p = exp(r) - 1: exp(z) = s p + s and exp(z) - 1 = s p + (s - 1) with s =
// 2^n, both to about 1 ulp. Faster than two calls of SLEEF.
template <class S>
TD_HD ExpPair<Vec<S>> exp_pair(Vec<S> z) {
  using V = Vec<S>;
  using Raw = typename V::Raw;
  using Bits = typename V::Mask::Bits;
  constexpr bool single = sizeof(S) == 4;
  constexpr int mantissa = single ? 23 : 52;
  const V large(single ? 0x1p64 : 0x1p512), shift(single ? 0x1.8p23 : 0x1.8p52);
  z = at_least(z, V(single ? -110.0 : -760.0));
  const V shifted = z * V(0x1.71547652b82fep0) + shift, n = shifted - shift;  // the sum rounds to an integer
  const V r = (z - n * V(single ? 0x1.62e4p-1 : 0x1.62e42fefa39efp-1)) -
              n * V(single ? 0x1.7f7d1cf79abcap-20 : 0x1.abc9e3b39803fp-56);
  const V p = exp_quotient(r) * r;
  // n are the last bits of `shifted`; added to a large number's exponent they give a normal one, also where s isn't.
  const V s = V((Raw)(((Bits)shifted.raw << mantissa) + (Bits)large.raw)) * V(single ? 0x1p-64 : 0x1p-512);
  return {s * p + s, s * p + (s - V(1.0))};
}

// (sin(r) / r - 1) / t and (cos(r) - 1 + t/2) / t^2 for |r| <= pi/4, t = r^2: the polynomials closest to sin and cos,
// by Remez' algorithm.
TD_HD SinCos<Vec<float>> sin_cos_tails(Vec<float> t) {
  using V = Vec<float>;
  const V t2 = t * t;
  return {(V(-0x1.555546p-3) + V(0x1.11075ep-7) * t) + V(-0x1.994e02p-13) * t2,
          (V(0x1.55554ap-5) + V(-0x1.6c0c8ap-10) * t) + V(0x1.9a01bcp-16) * t2};
}
TD_HD SinCos<Vec<double>> sin_cos_tails(Vec<double> t) {
  using V = Vec<double>;
  const V t2 = t * t;
  return {(V(-0x1.5555555555549p-3) + V(0x1.111111110f874p-7) * t) +
              t2 * ((V(-0x1.a01a019c10c69p-13) + V(0x1.71de3576f7f63p-19) * t) +
                    t2 * (V(-0x1.ae5e659f90111p-26) + V(0x1.5d92d27e5a4b1p-33) * t)),
          (V(0x1.555555555554cp-5) + V(-0x1.6c16c16c15177p-10) * t) +
              t2 * ((V(0x1.a01a019cb10adp-16) + V(-0x1.27e4f80969c32p-22) * t) +
                    t2 * (V(0x1.1ee9eb89e3440p-29) + V(-0x1.8fae69596083ep-37) * t))};
}

// Far from 0.
template <class S>
TD_HD_COLD SinCos<Vec<S>> far_sin_cos(Vec<S> x) {
  return {sin(x), cos(x)};
}

// To about 1 ulp, with one reduction for both: multiples of pi/2, in three parts (positive, so that -0 stays), are
// subtracted; by what r and 1 - r^2/2 are rounded is added later.
template <class S>
TD_HD SinCos<Vec<S>> sin_cos(const Vec<S>& x) {
  using V = Vec<S>;
  using Bits = typename V::Mask::Bits;
  using Raw = typename V::Raw;
  constexpr bool single = sizeof(S) == 4;
  constexpr int last = 8 * sizeof(S) - 1;
  if (any(!(abs(x) < V(single ? 48000.0 : 1e9)))) return far_sin_cos(x);
  const V shift(single ? 0x1.8p23 : 0x1.8p52);
  const V shifted = x * V(0x1.45f306dc9c883p-1) + shift, k = shifted - shift;  // the sum rounds to an integer
  const V second = V(single ? 0x1.4442dp-24 : 0x1.1a62633145c06p-54);
  const V exact = x - k * V(single ? 0x1.921fb4p0 : 0x1.921fb54442d18p0), r = exact - k * second;
  // Where r is so small that exact - r would be rounded, too, r is as good as it can be.
  const V rounded = select(abs(exact) < V(single ? 1e-2 : 2e-7), V(0.0), (exact - r) - k * second);
  const V rest = rounded - k * V(single ? 0x1.846988p-48 : 0x1.c1cd129024e08p-107);
  const V t = r * r, half = V(0.5) * t, rough = V(1.0) - half;
  const SinCos<V> tails = sin_cos_tails(t);
  const V s = select(r == V(0.0), r, r + (r * t * tails.sin + rest));  // the sign of zero
  const V c = rough + (((V(1.0) - rough) - half) + (t * t * tails.cos - r * rest));
  // k are the last bits of `shifted`: quadrants.
  const Bits quadrant = (Bits)shifted.raw, sign = (Bits)V(-0.0).raw;
  const typename V::Mask odd{(quadrant << last) < 0};
  const V sine = select(odd, c, s), cosine = select(odd, s, c);
  return {V((Raw)((Bits)sine.raw ^ (quadrant << (last - 1) & sign))),
          V((Raw)((Bits)cosine.raw ^ ((quadrant + 1) << (last - 1) & sign)))};
}

// at_least: x if that is NaN.
#ifdef TD_SIMD_AVX512
TD_HD Vec<float> at_least(Vec<float> x, Vec<float> low) { return Vec<float>::Raw(_mm512_max_ps(low.raw, x.raw)); }
TD_HD Vec<double> at_least(Vec<double> x, Vec<double> low) { return Vec<double>::Raw(_mm512_max_pd(low.raw, x.raw)); }
TD_HD Vec<float> sqrt(Vec<float> x) { return Vec<float>::Raw(_mm512_sqrt_ps(x.raw)); }
TD_HD Vec<double> sqrt(Vec<double> x) { return Vec<double>::Raw(_mm512_sqrt_pd(x.raw)); }
TD_HD Vec<float> floor(Vec<float> x) { return Vec<float>::Raw(_mm512_roundscale_ps(x.raw, _MM_FROUND_TO_NEG_INF)); }
TD_HD Vec<double> floor(Vec<double> x) { return Vec<double>::Raw(_mm512_roundscale_pd(x.raw, _MM_FROUND_TO_NEG_INF)); }
#else
TD_HD Vec<float> at_least(Vec<float> x, Vec<float> low) { return Vec<float>::Raw(_mm256_max_ps(low.raw, x.raw)); }
TD_HD Vec<double> at_least(Vec<double> x, Vec<double> low) { return Vec<double>::Raw(_mm256_max_pd(low.raw, x.raw)); }
TD_HD Vec<float> sqrt(Vec<float> x) { return Vec<float>::Raw(_mm256_sqrt_ps(x.raw)); }
TD_HD Vec<double> sqrt(Vec<double> x) { return Vec<double>::Raw(_mm256_sqrt_pd(x.raw)); }
TD_HD Vec<float> floor(Vec<float> x) { return Vec<float>::Raw(_mm256_floor_ps(x.raw)); }
TD_HD Vec<double> floor(Vec<double> x) { return Vec<double>::Raw(_mm256_floor_pd(x.raw)); }
#endif

// clang-format off
#define TD_VECTOR_FUNCTION_OF(name, precision, single_function, double_function) \
  extern "C" Vec<float>::Raw single_function(Vec<float>::Raw); \
  extern "C" Vec<double>::Raw double_function(Vec<double>::Raw); \
  TD_HD Vec<float> name(Vec<float> x) { return single_function(x.raw); } \
  TD_HD Vec<double> name(Vec<double> x) { return double_function(x.raw); }
#define TD_EXPAND(macro, ...) macro(__VA_ARGS__)
#define TD_VECTOR_FUNCTION(name, precision) \
  TD_EXPAND(TD_VECTOR_FUNCTION_OF, name, precision, TD_SLEEF(name, precision))
TD_VECTOR_FUNCTION(exp, u10)   TD_VECTOR_FUNCTION(exp2, u10)  TD_VECTOR_FUNCTION(expm1, u10)
TD_VECTOR_FUNCTION(log, u10)   TD_VECTOR_FUNCTION(log2, u10)  TD_VECTOR_FUNCTION(log10, u10)
TD_VECTOR_FUNCTION(log1p, u10)
TD_VECTOR_FUNCTION(sin, u10)   TD_VECTOR_FUNCTION(cos, u10)   TD_VECTOR_FUNCTION(tan, u10)
TD_VECTOR_FUNCTION(asin, u10)  TD_VECTOR_FUNCTION(acos, u10)  TD_VECTOR_FUNCTION(atan, u10)
TD_VECTOR_FUNCTION(sinh, u10)  TD_VECTOR_FUNCTION(cosh, u10)  TD_VECTOR_FUNCTION(tanh, u10)
TD_VECTOR_FUNCTION(asinh, u10) TD_VECTOR_FUNCTION(acosh, u10) TD_VECTOR_FUNCTION(atanh, u10)
TD_VECTOR_FUNCTION(erf, u10)   TD_VECTOR_FUNCTION(erfc, u15)
#undef TD_VECTOR_FUNCTION
#undef TD_VECTOR_FUNCTION_OF
#undef TD_EXPAND
// clang-format on

#define TD_VECTOR_POW(single_function, double_function)                                              \
  extern "C" Vec<float>::Raw single_function(Vec<float>::Raw, Vec<float>::Raw);                      \
  extern "C" Vec<double>::Raw double_function(Vec<double>::Raw, Vec<double>::Raw);                   \
  TD_HD Vec<float> pow(Vec<float> x, double p) { return single_function(x.raw, Vec<float>(p).raw); } \
  TD_HD Vec<double> pow(Vec<double> x, double p) { return double_function(x.raw, Vec<double>(p).raw); }
#define TD_EXPAND(macro, ...) macro(__VA_ARGS__)
                        TD_EXPAND(TD_VECTOR_POW, TD_SLEEF(pow, u10))
#undef TD_VECTOR_POW
#undef TD_EXPAND

TD_NAMESPACE_END

#endif
