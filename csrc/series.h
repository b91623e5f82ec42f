// Truncated power series: sums over products of coefficients, for an order known at compile time or at run time.
//
// An index k is either an int or a Const<k>; with a Const every sum is written out and the coefficients live in
// registers. The sums are fold expressions rather than loops or lambdas: that halves the compile time.
//
// A series A is a pointer T*, or with an int index anything that has a[k] (cuda/strided.cuh).
#pragma once

#include "math.h"

#include <type_traits>
#include <utility>

TD_NAMESPACE_BEGIN

template <int value_>
struct Const {
  static constexpr int value = value_;
  TD_HD constexpr operator int() const { return value_; }
};

template <class K>
inline constexpr bool is_const = false;
template <int k>
inline constexpr bool is_const<Const<k>> = true;

// The number type of a series.
template <class A>
using NumberIn = std::remove_cvref_t<decltype(std::declval<A&>()[0])>;

// The integers first, ..., last as a parameter pack.
template <int first, int last>
using Indices = std::make_integer_sequence<int, (last >= first ? last - first + 1 : 0)>;

template <int first, class F, int... i>
TD_HD void static_for(F& f, std::integer_sequence<int, i...>) {
  (f(Const<first + i>{}), ...);
}

// f(first), ..., f(last), in this order.
template <int first, class K, class F>
TD_HD void for_each(K last, F&& f) {
  if constexpr (is_const<K>) {
    static_for<first>(f, Indices<first, K::value>{});
  } else {
    TD_ROLLED
    for (int i = first; i <= last; ++i) f(i);
  }
}

namespace terms {
// a and b shifted so that term i of the sum is a[i] b[-i], a[i] a[-i], ...
template <class T, int i0, int... i>
TD_HD T convolution(const T* a, const T* b, std::integer_sequence<int, i0, i...>) {
  T sum = a[0] * b[0];
  ((sum = sum + a[i] * b[-i]), ...);
  return sum;
}
template <class T, int... i>
TD_HD T pairs(const T* a, const T* b, std::integer_sequence<int, i...>) {
  T sum(0.0);
  ((sum = sum + a[i] * b[-i]), ...);
  return sum;
}
template <class T, class Last, int... i>
TD_HD T correlation(Last last, const T* s, const T* g, std::integer_sequence<int, i...>) {
  T sum(0.0);
  ((i <= last ? void(sum = sum + s[i] * g[i]) : void()), ...);
  return sum;
}
template <int k, class T, int... i>
TD_HD T power(double p, const T* u, const T* s, std::integer_sequence<int, i...>) {
  T sum(0.0);
  ((sum = sum + T((p * (k - i) - k) * (1.0 / k)) * (u[k - i] * s[i])), ...);
  return sum;
}
}  // namespace terms

// sum_{j=first..k} a_j b_{k-j}, first <= k; with first = 0 the k-th coefficient of the product a b. Where a recurrence
// waits for its last coefficient, b_{k-first}, that is added last.
template <int first = 0, class K, class A>
TD_HD auto cauchy(K k, A a, A b) {
  using T = NumberIn<A>;
  if constexpr (is_const<K>) {
    return terms::convolution<T>(b, a + k, Indices<first, K::value>{});
  } else {
    T sum = a[k] * b[0];
    TD_ROLLED
    for (int j = k - 1; j >= first; --j) sum = sum + a[j] * b[k - j];
    return sum;
  }
}

// sum_{j=1..k-1} a_j a_{k-j}, each pair once.
template <class K, class A>
TD_HD auto square_interior(K k, A a) {
  using T = NumberIn<A>;
  T sum(0.0);
  if constexpr (is_const<K>) {
    sum = terms::pairs<T>(a + 1, a + (k - 1), Indices<1, (K::value - 1) / 2>{});
  } else {
    TD_ROLLED
    for (int j = 1; j <= (k - 1) / 2; ++j) sum = sum + a[j] * a[k - j];
  }
  sum = sum + sum;
  return k % 2 == 0 ? sum + a[k / 2] * a[k / 2] : sum;
}

// k-th coefficient of a^2, k >= 1.
template <class K, class A>
TD_HD auto square(K k, A a) {
  return square_interior(k, a) + NumberIn<A>(2.0) * a[0] * a[k];
}

// k-th coefficient of the integral of a'(t) b(t), with da_j = j a_j: (1/k) sum_{j=1..k} da_j b_{k-j}.
template <class K, class A>
TD_HD auto integrate(K k, A da, A b) {
  return cauchy<1>(k, da, b) * NumberIn<A>(1.0 / k);
}

// sum_{k=j..order} s_{k-j} g_k, order <= K. (Beyond the order s may be infinite: no zero in g may meet it.)
template <class J, class K, class A>
TD_HD auto correlation(J j, K K_, int order, A s, A g) {
  using T = NumberIn<A>;
  if constexpr (is_const<K>) {
    return terms::correlation<T>(order - j, s, g + j, Indices<J::value, K::value>{});
  } else {
    T sum(0.0);
    TD_ROLLED
    for (int k = j; k <= order; ++k) sum = sum + s[k - j] * g[k];
    return sum;
  }
}

// k-th coefficient of a series s proportional to u^(p-1): k u_0 s_k = sum_{j=1..k} (p j - k) u_j s_{k-j}.
template <class K, class A>
TD_HD auto power(K k, double p, A u, A s) {
  using T = NumberIn<A>;
  T sum(0.0);
  if constexpr (is_const<K>) {
    sum = terms::power<K::value, T>(p, u, s, Indices<1, K::value>{});
  } else {
    TD_ROLLED
    for (int j = k; j >= 1; --j) sum = sum + T((p * j - k) * (1.0 / k)) * (u[j] * s[k - j]);
  }
  return sum * (T(1.0) / u[0]);
}

TD_NAMESPACE_END
