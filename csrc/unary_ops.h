// THE unary ops: for each, its value and the recurrence of its slope. Everything else is generic (propagate.h).
//
// For y = phi(x), the slope s is the series of phi'(x(t)). An op provides
//   seed(x0, v)   v.y = phi(x0), v.s = phi'(x0), v.a[i] = coefficient 0 of its auxiliary series;
//   step(k, w)    given x_0..x_k, y_0..y_k, and s, a up to k-1: sets w.a[i][k] and w.s[k].
// w.dx[j] = j x_j. All state is in genuine series, so that a first-order step differentiates a seed (dual numbers).
// Optional traits:
//   piecewise_linear   the slope is constant in t: there is no step;
//   singular           the recurrence breaks down where needs_care(s0) holds (derivatives infinite or underflowing);
//                      there local(x0, n, put) puts (j, c_j), j = 0..n, the Taylor coefficients of phi' at x0, which
//                      are composed with x(t) - x0 instead;
//   wide               cancellation costs too many digits in float32: computed in float64;
//   local_only         there is no recurrence: always local(), and value(x0) in place of seed();
//   activation         networks are made of it: the CPU's kernels are unrolled for more orders.
// Seeds avoid cancellation: 1/cosh^2 rather than 1 - tanh^2, sigma(x) sigma(-x) rather than sigma - sigma^2.
//
// A new op is a struct here, its name in TD_UNARY_OPS, and a line in taylorderiv/unary_ops.py.
#pragma once

#include "series.h"

TD_NAMESPACE_BEGIN

template <class T, int aux>
struct Seed {
  T y, s, a[aux > 0 ? aux : 1];
};

struct Op {
  static constexpr int aux = 0;
  static constexpr int params = 0;
  static constexpr bool piecewise_linear = false, singular = false, local_only = false, wide = false;
  static constexpr bool activation = false;
};

// ---------------------------------------------------------------------------------------------------------------------
// Piecewise linear
// ---------------------------------------------------------------------------------------------------------------------

struct PiecewiseLinear : Op {
  static constexpr bool piecewise_linear = true;
};

struct Neg : PiecewiseLinear {
  static constexpr const char* name = "neg";
  TD_HD explicit Neg(const double*) {}
  template <class T>
  TD_HD void seed(const T& x, Seed<T, 0>& v) const {
    v.y = -x;
    v.s = T(-1.0);
  }
};

struct Abs : PiecewiseLinear {
  static constexpr const char* name = "abs";
  TD_HD explicit Abs(const double*) {}
  template <class T>
  TD_HD void seed(const T& x, Seed<T, 0>& v) const {
    v.y = abs(x);
    v.s = select(x > T(0.0), T(1.0), select(x < T(0.0), T(-1.0), T(0.0)));
  }
};

struct Sign : PiecewiseLinear {
  static constexpr const char* name = "sign";
  TD_HD explicit Sign(const double*) {}
  template <class T>
  TD_HD void seed(const T& x, Seed<T, 0>& v) const {
    v.y = select(x > T(0.0), T(1.0), select(x < T(0.0), T(-1.0), T(0.0)));
    v.s = T(0.0);
  }
};

struct Floor : PiecewiseLinear {
  static constexpr const char* name = "floor";
  TD_HD explicit Floor(const double*) {}
  template <class T>
  TD_HD void seed(const T& x, Seed<T, 0>& v) const {
    v.y = floor(x);
    v.s = T(0.0);
  }
};

struct LeakyRelu : PiecewiseLinear {
  static constexpr const char* name = "leaky_relu";
  static constexpr int params = 1;
  double slope;
  TD_HD explicit LeakyRelu(const double* p) : slope(p[0]) {}
  template <class T>
  TD_HD void seed(const T& x, Seed<T, 0>& v) const {
    v.s = select(x > T(0.0), T(1.0), T(slope));
    v.y = select(x > T(0.0), x, T(slope) * x);
  }
};

struct Relu : PiecewiseLinear {
  static constexpr const char* name = "relu";
  TD_HD explicit Relu(const double*) {}
  template <class T>
  TD_HD void seed(const T& x, Seed<T, 0>& v) const {
    v.s = select(x <= T(0.0), T(0.0), T(1.0));
    v.y = select(x <= T(0.0), T(0.0), x);
  }
};

struct Hardtanh : PiecewiseLinear {
  static constexpr const char* name = "hardtanh";
  static constexpr int params = 2;
  double low, high;
  TD_HD explicit Hardtanh(const double* p) : low(p[0]), high(p[1]) {}
  template <class T>
  TD_HD void seed(const T& x, Seed<T, 0>& v) const {
    v.y = select(x <= T(low), T(low), select(x >= T(high), T(high), x));
    v.s = select(x > T(low), select(x < T(high), T(1.0), T(0.0)), T(0.0));
  }
};

struct Relu6 : Hardtanh {
  static constexpr const char* name = "relu6";
  static constexpr int params = 0;
  TD_HD explicit Relu6(const double*) : Hardtanh(bounds()) {}

 private:
  struct Bounds {
    double p[2] = {0.0, 6.0};
    TD_HD operator const double*() const { return p; }
  };
  TD_HD static Bounds bounds() { return {}; }
};

// ---------------------------------------------------------------------------------------------------------------------
// Polynomial and exponential
// ---------------------------------------------------------------------------------------------------------------------

struct Square : Op {
  static constexpr const char* name = "square";
  static constexpr bool activation = true;
  TD_HD explicit Square(const double*) {}
  template <class T>
  TD_HD void seed(const T& x, Seed<T, 0>& v) const {
    v.y = x * x;
    v.s = x + x;
  }
  template <class K, class W>
  TD_HD void step(K k, W& w) const {
    w.s[k] = w.x[k] + w.x[k];
  }
};

struct Exp : Op {
  static constexpr const char* name = "exp";
  static constexpr bool activation = true;
  TD_HD explicit Exp(const double*) {}
  template <class T>
  TD_HD void seed(const T& x, Seed<T, 0>& v) const {
    v.y = v.s = exp(x);
  }
  template <class K, class W>
  TD_HD void step(K k, W& w) const {
    w.s[k] = w.y[k];
  }
};

struct Exp2 : Op {
  static constexpr const char* name = "exp2";
  static constexpr double ln2 = 0.69314718055994530942;
  TD_HD explicit Exp2(const double*) {}
  template <class T>
  TD_HD void seed(const T& x, Seed<T, 0>& v) const {
    v.y = exp2(x);
    v.s = T(ln2) * v.y;
  }
  template <class K, class W>
  TD_HD void step(K k, W& w) const {
    using T = typename W::Number;
    w.s[k] = T(ln2) * w.y[k];
  }
};

struct Expm1 : Exp {
  static constexpr const char* name = "expm1";
  TD_HD explicit Expm1(const double* p) : Exp(p) {}
  template <class T>
  TD_HD void seed(const T& x, Seed<T, 0>& v) const {
    v.y = expm1(x);
    v.s = exp(x);
  }
};

// elu, selu, celu: scale * (x > 0 ? x : alpha (exp(rate x) - 1)).
struct ExponentialLinear : Op {
  static constexpr bool activation = true;
  double scale, alpha, rate;
  TD_HD ExponentialLinear(double scale, double alpha, double rate) : scale(scale), alpha(alpha), rate(rate) {}
  template <class T>
  TD_HD void seed(const T& x, Seed<T, 0>& v) const {
    const auto linear = x > T(0.0);
    const ExpPair<T> p = exp_pair(select(linear, T(0.0), T(rate) * x));
    v.y = T(scale) * select(linear, x, T(alpha) * p.m);
    v.s = T(scale) * select(linear, T(1.0), T(alpha * rate) * p.e);
  }
  template <class K, class W>
  TD_HD void step(K k, W& w) const {
    using T = typename W::Number;
    w.s[k] = select(w.x[0] >= T(0.0), T(0.0), T(rate) * w.y[k]);  // at 0 too, as in PyTorch
  }
};

struct Elu : ExponentialLinear {
  static constexpr const char* name = "elu";
  static constexpr int params = 1;
  TD_HD explicit Elu(const double* p) : ExponentialLinear(1.0, p[0], 1.0) {}
};

struct Selu : ExponentialLinear {
  static constexpr const char* name = "selu";
  TD_HD explicit Selu(const double*) : ExponentialLinear(1.0507009873554804934, 1.6732632423543772848, 1.0) {}
};

struct Celu : ExponentialLinear {
  static constexpr const char* name = "celu";
  static constexpr int params = 1;
  TD_HD explicit Celu(const double* p) : ExponentialLinear(1.0, p[0], 1.0 / p[0]) {}
};

// ---------------------------------------------------------------------------------------------------------------------
// Powers and logarithms: s = factor * x^(p-1)
// ---------------------------------------------------------------------------------------------------------------------

// Taylor coefficient j of x^q: binomial(q, j) x^(q-j), with 0 * inf = 0 where the binomial vanishes.
TD_HD double power_coefficient(double x, double q, int j) {
  double binomial = 1.0;
  for (int i = 0; i < j; ++i) binomial *= (q - i) / (i + 1);
  return binomial == 0.0 ? 0.0 : binomial * pow(x, q - j);
}

struct PowerOp : Op {
  static constexpr bool singular = true;
  double p, factor;
  TD_HD PowerOp(double p, double factor) : p(p), factor(factor) {}
  template <class K, class W>
  TD_HD void step(K k, W& w) const {
    w.s[k] = power(k, p, w.x, w.s);
  }
  template <class T>
  TD_HD auto needs_care(const T& s) const {
    return is_infinite(s) | is_tiny(s);
  }
  template <class F>
  TD_HD void local(double x, int n, const F& put) const {
    for (int j = 0; j <= n; ++j) put(j, factor * power_coefficient(x, p - 1.0, j));
  }
};

struct Log : PowerOp {
  static constexpr const char* name = "log";
  TD_HD explicit Log(const double*) : PowerOp(0.0, 1.0) {}
  template <class T>
  TD_HD void seed(const T& x, Seed<T, 0>& v) const {
    v.y = log(x);
    v.s = T(1.0) / x;
  }
};

struct Log2 : PowerOp {
  static constexpr const char* name = "log2";
  TD_HD explicit Log2(const double*) : PowerOp(0.0, 1.4426950408889634074) {}
  template <class T>
  TD_HD void seed(const T& x, Seed<T, 0>& v) const {
    v.y = log2(x);
    v.s = T(factor) / x;
  }
};

struct Log10 : PowerOp {
  static constexpr const char* name = "log10";
  TD_HD explicit Log10(const double*) : PowerOp(0.0, 0.43429448190325182765) {}
  template <class T>
  TD_HD void seed(const T& x, Seed<T, 0>& v) const {
    v.y = log10(x);
    v.s = T(factor) / x;
  }
};

struct Sqrt : PowerOp {
  static constexpr const char* name = "sqrt";
  TD_HD explicit Sqrt(const double*) : PowerOp(0.5, 0.5) {}
  template <class T>
  TD_HD void seed(const T& x, Seed<T, 0>& v) const {
    v.y = sqrt(x);
    v.s = T(0.5) / v.y;
  }
};

struct Rsqrt : PowerOp {
  static constexpr const char* name = "rsqrt";
  TD_HD explicit Rsqrt(const double*) : PowerOp(-0.5, -0.5) {}
  template <class T>
  TD_HD void seed(const T& x, Seed<T, 0>& v) const {
    v.y = T(1.0) / sqrt(x);
    v.s = T(-0.5) * v.y / x;
  }
};

struct Reciprocal : PowerOp {
  static constexpr const char* name = "reciprocal";
  TD_HD explicit Reciprocal(const double*) : PowerOp(-1.0, -1.0) {}
  template <class T>
  TD_HD void seed(const T& x, Seed<T, 0>& v) const {
    v.y = T(1.0) / x;
    v.s = -(v.y * v.y);
  }
};

// Real exponents; integer powers are products (rules/bilinear.py), which stay exact where x_0 = 0.
struct Pow : PowerOp {
  static constexpr const char* name = "pow";
  static constexpr int params = 1;
  TD_HD explicit Pow(const double* params) : PowerOp(params[0], params[0]) {}
  template <class T>
  TD_HD void seed(const T& x, Seed<T, 0>& v) const {
    v.y = pow(x, p);
    v.s = T(p) * pow(x, p - 1.0);
  }
};

struct Log1p : Op {
  static constexpr const char* name = "log1p";
  static constexpr int aux = 1;
  static constexpr bool singular = true;
  TD_HD explicit Log1p(const double*) {}
  template <class T>
  TD_HD void seed(const T& x, Seed<T, 1>& v) const {
    v.y = log1p(x);
    v.a[0] = T(1.0) + x;
    v.s = T(1.0) / v.a[0];
  }
  template <class K, class W>
  TD_HD void step(K k, W& w) const {
    w.a[0][k] = w.x[k];
    w.s[k] = power(k, 0.0, w.a[0], w.s);
  }
  template <class T>
  TD_HD auto needs_care(const T& s) const {
    return is_infinite(s);
  }
  template <class F>
  TD_HD void local(double x, int n, const F& put) const {
    for (int j = 0; j <= n; ++j) put(j, power_coefficient(1.0 + x, -1.0, j));
  }
};

// ---------------------------------------------------------------------------------------------------------------------
// Trigonometric and hyperbolic
// ---------------------------------------------------------------------------------------------------------------------

// y'' = sign * y: sin, cos, sinh, cosh.
template <int sign>
struct Oscillator : Op {
  template <class K, class W>
  TD_HD void step(K k, W& w) const {
    using T = typename W::Number;
    w.s[k] = T(double(sign)) * integrate(k, w.dx, w.y);
  }
};

struct Sin : Oscillator<-1> {
  static constexpr const char* name = "sin";
  static constexpr bool activation = true;
  TD_HD explicit Sin(const double*) {}
  template <class T>
  TD_HD void seed(const T& x, Seed<T, 0>& v) const {
    const SinCos<T> p = sin_cos(x);
    v.y = p.sin;
    v.s = p.cos;
  }
};

struct Cos : Oscillator<-1> {
  static constexpr const char* name = "cos";
  static constexpr bool activation = true;
  TD_HD explicit Cos(const double*) {}
  template <class T>
  TD_HD void seed(const T& x, Seed<T, 0>& v) const {
    const SinCos<T> p = sin_cos(x);
    v.y = p.cos;
    v.s = -p.sin;
  }
};

struct Sinh : Oscillator<1> {
  static constexpr const char* name = "sinh";
  TD_HD explicit Sinh(const double*) {}
  template <class T>
  TD_HD void seed(const T& x, Seed<T, 0>& v) const {
    v.y = sinh(x);
    v.s = cosh(x);
  }
};

struct Cosh : Oscillator<1> {
  static constexpr const char* name = "cosh";
  TD_HD explicit Cosh(const double*) {}
  template <class T>
  TD_HD void seed(const T& x, Seed<T, 0>& v) const {
    v.y = cosh(x);
    v.s = sinh(x);
  }
};

struct Tan : Op {
  static constexpr const char* name = "tan";
  TD_HD explicit Tan(const double*) {}
  template <class T>
  TD_HD void seed(const T& x, Seed<T, 0>& v) const {
    v.y = tan(x);
    v.s = T(1.0) + v.y * v.y;
  }
  template <class K, class W>
  TD_HD void step(K k, W& w) const {
    w.s[k] = square(k, w.y);
  }
};

struct Tanh : Op {
  static constexpr const char* name = "tanh";
  static constexpr bool activation = true;
  TD_HD explicit Tanh(const double*) {}
  template <class T>
  TD_HD void seed(const T& x, Seed<T, 0>& v) const {
    const ExpPair<T> p = exp_pair(T(-2.0) * abs(x));
    const T d = inverse_of_one_plus(p.e);
    v.y = with_sign_of(x, p.m * d);
    v.s = T(4.0) * p.e * d * d;  // 1 / cosh^2
  }
  template <class K, class W>
  TD_HD void step(K k, W& w) const {
    w.s[k] = -square(k, w.y);
  }
};

// s = factor * u^(p-1) with u = c0 + c2 x^2: the inverse functions below.
template <int c2>
struct InverseOp : Op {
  static constexpr int aux = 1;
  static constexpr bool singular = true;
  double p, factor;
  TD_HD InverseOp(double p, double factor) : p(p), factor(factor) {}
  template <class K, class W>
  TD_HD void step(K k, W& w) const {
    using T = typename W::Number;
    w.a[0][k] = T(double(c2)) * square(k, w.x);
    w.s[k] = power(k, p, w.a[0], w.s);
  }
  template <class T>
  TD_HD auto needs_care(const T& s) const {
    return is_infinite(s) | is_tiny(s);
  }
  // At x = 1 and x = -1 every derivative is infinite: the limits from inside the domain. Where x^2 overflows, u = c2
  // x^2.
  template <class F>
  TD_HD void local(double x, int n, const F& put) const {
    const bool large = abs(x) > 2.0;
    const bool alternates = large || c2 < 0 ? x < 0.0 : x > 0.0;
    for (int j = 0; j <= n; ++j) {
      const double size = large ? power_coefficient(abs(x), 2.0 * (p - 1.0), j) : HUGE_VAL;
      put(j, (alternates && j % 2 == 1 ? -factor : factor) * size);
    }
  }
};

struct Asin : InverseOp<-1> {
  static constexpr const char* name = "asin";
  TD_HD explicit Asin(const double*) : InverseOp(0.5, 1.0) {}
  template <class T>
  TD_HD void seed(const T& x, Seed<T, 1>& v) const {
    v.y = asin(x);
    v.a[0] = (T(1.0) - x) * (T(1.0) + x);
    v.s = T(1.0) / sqrt(v.a[0]);
  }
};

struct Acos : InverseOp<-1> {
  static constexpr const char* name = "acos";
  TD_HD explicit Acos(const double*) : InverseOp(0.5, -1.0) {}
  template <class T>
  TD_HD void seed(const T& x, Seed<T, 1>& v) const {
    v.y = acos(x);
    v.a[0] = (T(1.0) - x) * (T(1.0) + x);
    v.s = T(-1.0) / sqrt(v.a[0]);
  }
};

struct Atanh : InverseOp<-1> {
  static constexpr const char* name = "atanh";
  TD_HD explicit Atanh(const double*) : InverseOp(0.0, 1.0) {}
  template <class T>
  TD_HD void seed(const T& x, Seed<T, 1>& v) const {
    v.y = atanh(x);
    v.a[0] = (T(1.0) - x) * (T(1.0) + x);
    v.s = T(1.0) / v.a[0];
  }
};

struct Acosh : InverseOp<1> {
  static constexpr const char* name = "acosh";
  TD_HD explicit Acosh(const double*) : InverseOp(0.5, 1.0) {}
  template <class T>
  TD_HD void seed(const T& x, Seed<T, 1>& v) const {
    v.y = acosh(x);
    v.a[0] = (x - T(1.0)) * (x + T(1.0));
    v.s = T(1.0) / sqrt(v.a[0]);
  }
};

struct Atan : InverseOp<1> {
  static constexpr const char* name = "atan";
  TD_HD explicit Atan(const double*) : InverseOp(0.0, 1.0) {}
  template <class T>
  TD_HD void seed(const T& x, Seed<T, 1>& v) const {
    v.y = atan(x);
    v.a[0] = T(1.0) + x * x;
    v.s = T(1.0) / v.a[0];
  }
};

struct Asinh : InverseOp<1> {
  static constexpr const char* name = "asinh";
  static constexpr bool wide = true;
  TD_HD explicit Asinh(const double*) : InverseOp(0.5, 1.0) {}
  template <class T>
  TD_HD void seed(const T& x, Seed<T, 1>& v) const {
    v.y = asinh(x);
    v.a[0] = T(1.0) + x * x;
    v.s = T(1.0) / sqrt(v.a[0]);
  }
};

// ---------------------------------------------------------------------------------------------------------------------
// The logistic family
// ---------------------------------------------------------------------------------------------------------------------

// sigma(z), q = sigma'(z) = sigma(z) sigma(-z) and tau = tanh(z/2) = 2 sigma - 1, each without cancellation.
template <class T>
struct Logistic {
  T sigma, q, tau;
  TD_HD explicit Logistic(const T& z) {
    const ExpPair<T> p = exp_pair(-abs(z));
    const T larger = inverse_of_one_plus(p.e);
    const auto negative = z < T(0.0);
    sigma = select(negative, p.e * larger, larger);
    q = p.e * larger * larger;
    tau = select(negative, p.m * larger, -(p.m * larger));
  }
};

// Coefficient k >= 1 of q = sigma'(z(t)) from sigma and tau_0: q = (1 - tau^2)/4 with tau_k = 2 sigma_k.
template <class K, class A>
TD_HD auto logistic_slope(K k, const NumberIn<A>& tau0, A sigma) {
  return -(tau0 * sigma[k] + square_interior(k, sigma));
}

struct Sigmoid : Op {
  static constexpr const char* name = "sigmoid";
  static constexpr bool activation = true;
  static constexpr int aux = 1;  // tau
  TD_HD explicit Sigmoid(const double*) {}
  template <class T>
  TD_HD void seed(const T& x, Seed<T, 1>& v) const {
    const Logistic<T> l(x);
    v.y = l.sigma;
    v.s = l.q;
    v.a[0] = l.tau;
  }
  template <class K, class W>
  TD_HD void step(K k, W& w) const {
    w.a[0][k] = w.y[k] + w.y[k];
    w.s[k] = logistic_slope(k, w.a[0][0], w.y);
  }
};

// log(1 + exp(beta x))/beta, and x itself where beta x > threshold (PyTorch's definition). s = sigma(beta x).
struct Softplus : Op {
  static constexpr const char* name = "softplus";
  static constexpr bool activation = true;
  static constexpr int params = 2, aux = 2;  // tau, q
  double beta, threshold;
  TD_HD explicit Softplus(const double* p) : beta(p[0]), threshold(p[1]) {}
  template <class T>
  TD_HD void seed(const T& x, Seed<T, 2>& v) const {
    const T z = T(beta) * x;
    const auto linear = z > T(threshold);
    const Logistic<T> l(z);
    v.y = select(linear, x, (select(z > T(0.0), z, T(0.0)) + log1p(exp(-abs(z)))) * T(1.0 / beta));
    v.s = select(linear, T(1.0), l.sigma);
    v.a[0] = select(linear, T(1.0), l.tau);
    v.a[1] = select(z >= T(threshold), T(0.0), l.q);  // at the threshold too, as in PyTorch
  }
  template <class K, class W>
  TD_HD void step(K k, W& w) const {
    using T = typename W::Number;
    w.s[k] = T(beta) * integrate(k, w.dx, w.a[1]);
    w.a[0][k] = w.s[k] + w.s[k];
    w.a[1][k] = logistic_slope(k, w.a[0][0], w.s);
  }
};

// log sigma(x) = -softplus(-x); s = sigma(-x).
struct LogSigmoid : Op {
  static constexpr const char* name = "logsigmoid";
  static constexpr int aux = 2;  // tau(-x), q
  TD_HD explicit LogSigmoid(const double*) {}
  template <class T>
  TD_HD void seed(const T& x, Seed<T, 2>& v) const {
    const Logistic<T> l(-x);
    v.y = select(x < T(0.0), x, T(0.0)) - log1p(exp(-abs(x)));
    v.s = l.sigma;
    v.a[0] = l.tau;
    v.a[1] = l.q;
  }
  template <class K, class W>
  TD_HD void step(K k, W& w) const {
    w.s[k] = -integrate(k, w.dx, w.a[1]);
    w.a[0][k] = w.s[k] + w.s[k];
    w.a[1][k] = logistic_slope(k, w.a[0][0], w.s);
  }
};

// y = x sigma(x), s = sigma + x q.
struct Silu : Op {
  static constexpr const char* name = "silu";
  static constexpr bool activation = true;
  static constexpr int aux = 3;  // sigma, q, tau
  TD_HD explicit Silu(const double*) {}
  template <class T>
  TD_HD void seed(const T& x, Seed<T, 3>& v) const {
    const Logistic<T> l(x);
    v.a[0] = l.sigma;
    v.a[1] = l.q;
    v.a[2] = l.tau;
    v.y = x * l.sigma;
    v.s = l.sigma + x * l.q;
  }
  template <class K, class W>
  TD_HD void step(K k, W& w) const {
    w.a[0][k] = integrate(k, w.dx, w.a[1]);
    w.a[1][k] = logistic_slope(k, w.a[2][0], w.a[0]);
    w.a[2][k] = w.a[0][k] + w.a[0][k];
    w.s[k] = w.a[0][k] + cauchy(k, w.x, w.a[1]);
  }
};

// gelu(x, approximate="tanh") = x sigma(z), z = 2 sqrt(2/pi) (x + c x^3); s = sigma(z) + x z'(x) q(z).
struct GeluTanh : Op {
  static constexpr const char* name = "gelu_tanh";
  static constexpr bool activation = true;
  static constexpr int aux = 6;  // sigma, q, tau, x^2, j z_j, m = x z'(x)
  static constexpr double c = 0.044715, r = 1.5957691216057307117;
  TD_HD explicit GeluTanh(const double*) {}
  template <class T>
  TD_HD void seed(const T& x, Seed<T, 6>& v) const {
    const T x2 = x * x;
    const Logistic<T> l(T(r) * x * (T(1.0) + T(c) * x2));
    v.a[0] = l.sigma;
    v.a[1] = l.q;
    v.a[2] = l.tau;
    v.a[3] = x2;
    v.a[4] = T(0.0);
    v.a[5] = T(r) * x * (T(1.0) + T(3.0 * c) * x2);
    v.y = x * l.sigma;
    v.s = l.sigma + v.a[5] * l.q;
  }
  template <class K, class W>
  TD_HD void step(K k, W& w) const {
    using T = typename W::Number;
    w.a[3][k] = square(k, w.x);
    const T cube = cauchy(k, w.x, w.a[3]);
    w.a[4][k] = T(r * k) * (w.x[k] + T(c) * cube);
    w.a[5][k] = T(r) * (w.x[k] + T(3.0 * c) * cube);
    w.a[0][k] = integrate(k, w.a[4], w.a[1]);
    w.a[1][k] = logistic_slope(k, w.a[2][0], w.a[0]);
    w.a[2][k] = w.a[0][k] + w.a[0][k];
    w.s[k] = w.a[0][k] + cauchy(k, w.a[5], w.a[1]);
  }
};

// y = x T with T = tanh(softplus(x)), T' = g sigma, g = 1 - T^2; s = T + x g sigma.
struct Mish : Op {
  static constexpr const char* name = "mish";
  static constexpr bool activation = true;
  static constexpr int aux = 6;  // sigma, q, tau, T, g, n = g sigma
  static constexpr bool wide = true;
  TD_HD explicit Mish(const double*) {}
  template <class T>
  TD_HD void seed(const T& x, Seed<T, 6>& v) const {
    const Logistic<T> l(x);
    const T e = exp(-abs(x));
    const auto negative = x < T(0.0);
    const T two_e = e + e, e2 = e * e, one_plus_e2 = (T(1.0) + e) * (T(1.0) + e);
    const T d = T(1.0) / select(negative, T(2.0) + two_e + e2, T(1.0) + two_e + e2 + e2);
    v.a[0] = l.sigma;
    v.a[1] = l.q;
    v.a[2] = l.tau;
    v.a[3] = select(negative, e2 + two_e, T(1.0) + two_e) * d;
    v.a[4] = T(4.0) * select(negative, T(1.0), e2) * one_plus_e2 * d * d;
    v.a[5] = v.a[4] * l.sigma;
    v.y = x * v.a[3];
    v.s = v.a[3] + x * v.a[5];
  }
  template <class K, class W>
  TD_HD void step(K k, W& w) const {
    w.a[0][k] = integrate(k, w.dx, w.a[1]);
    w.a[1][k] = logistic_slope(k, w.a[2][0], w.a[0]);
    w.a[2][k] = w.a[0][k] + w.a[0][k];
    w.a[3][k] = integrate(k, w.dx, w.a[5]);
    w.a[4][k] = -square(k, w.a[3]);
    w.a[5][k] = cauchy(k, w.a[4], w.a[0]);
    w.s[k] = w.a[3][k] + cauchy(k, w.x, w.a[5]);
  }
};

// ---------------------------------------------------------------------------------------------------------------------
// The error function family: g = exp(-x^2 / width) has k g_k = -(2 / width) sum_j j h_j g_{k-j}, h = x^2 / 2
// ---------------------------------------------------------------------------------------------------------------------

struct ErrorFunction : Op {
  static constexpr int aux = 1;  // j h_j
  template <class K, class W>
  TD_HD void step(K k, W& w) const {
    using T = typename W::Number;
    w.a[0][k] = T(0.5 * k) * square(k, w.x);
    w.s[k] = T(-2.0) * integrate(k, w.a[0], w.s);
  }
};

struct Erf : ErrorFunction {
  static constexpr const char* name = "erf";
  TD_HD explicit Erf(const double*) {}
  template <class T>
  TD_HD void seed(const T& x, Seed<T, 1>& v) const {
    v.y = erf(x);
    v.s = T(1.1283791670955125739) * exp(-(x * x));
    v.a[0] = T(0.0);
  }
};

struct Erfc : ErrorFunction {
  static constexpr const char* name = "erfc";
  TD_HD explicit Erfc(const double*) {}
  template <class T>
  TD_HD void seed(const T& x, Seed<T, 1>& v) const {
    v.y = erfc(x);
    v.s = T(-1.1283791670955125739) * exp(-(x * x));
    v.a[0] = T(0.0);
  }
};

// y = x Phi(x) with the normal distribution's Phi and density g; s = Phi + x g.
struct Gelu : Op {
  static constexpr const char* name = "gelu";
  static constexpr bool activation = true;
  static constexpr int aux = 3;  // j h_j, g, Phi
  TD_HD explicit Gelu(const double*) {}
  template <class T>
  TD_HD void seed(const T& x, Seed<T, 3>& v) const {
    v.a[0] = T(0.0);
    v.a[1] = T(0.39894228040143267794) * exp(T(-0.5) * (x * x));
    v.a[2] = T(0.5) * erfc(T(-0.70710678118654752440) * x);
    v.y = x * v.a[2];
    v.s = v.a[2] + x * v.a[1];
  }
  template <class K, class W>
  TD_HD void step(K k, W& w) const {
    using T = typename W::Number;
    w.a[0][k] = T(0.5 * k) * square(k, w.x);
    w.a[2][k] = integrate(k, w.dx, w.a[1]);
    w.a[1][k] = -integrate(k, w.a[0], w.a[1]);
    w.s[k] = w.a[2][k] + cauchy(k, w.x, w.a[1]);
  }
};

// ---------------------------------------------------------------------------------------------------------------------
// sin(pi x)/(pi x)
// ---------------------------------------------------------------------------------------------------------------------

// Derivative k is pi^k Re(i^k I_k(pi x)), I_k(z) = int_0^1 t^k exp(i z t) dt, and k I_{k-1} = exp(iz) - i z I_k.
// The recursion is stable upwards while k < |z| and downwards (from far enough, starting at 0) while k > |z|.
struct Sinc : Op {
  static constexpr const char* name = "sinc";
  static constexpr bool local_only = true;
  static constexpr double pi = 3.14159265358979323846;
  TD_HD explicit Sinc(const double*) {}
  template <class T>
  TD_HD T value(const T& x) const {
    const T z = T(pi) * x;
    return x == T(0.0) ? T(1.0) : sin(z) / z;
  }
  template <class F>
  TD_HD void local(double x, int n, const F& put) const {
    const double z = pi * x, cosine = cos(z), sine = sin(z);
    const int last = n + 1, turn = int(abs(z) < last ? abs(z) : last);
    double re = z == 0.0 ? 1.0 : sine / z, im = z == 0.0 ? 0.0 : (1.0 - cosine) / z;
    for (int k = 1; k <= turn; ++k) {  // upwards: I_k = (exp(iz) - k I_{k-1}) / (i z)
      const double a = cosine - k * re, b = sine - k * im;
      re = b / z;
      im = -a / z;
      put(k - 1, coefficient(k, re, im));
    }
    re = im = 0.0;
    for (int k = last + 2 * turn + 60; k > turn + 1; --k) {  // downwards: I_{k-1} = (exp(iz) - i z I_k) / k
      const double a = (cosine + z * im) / k, b = (sine - z * re) / k;
      re = a;
      im = b;
      if (k - 1 <= last) put(k - 2, coefficient(k - 1, re, im));
    }
  }

 private:
  // sinc^(k)(x) / (k-1)! from I_k = re + i im.
  TD_HD static double coefficient(int k, double re, double im) {
    double value = k % 4 == 0 ? re : k % 4 == 1 ? -im : k % 4 == 2 ? -re : im;
    for (int i = 1; i < k; ++i) value *= pi / i;
    return value * pi;
  }
};

// clang-format off
#define TD_UNARY_OPS(X) \
  X(Neg) X(Square) X(Exp) X(Exp2) X(Expm1) X(Log) X(Log2) X(Log10) X(Log1p) X(Sqrt) X(Rsqrt) X(Reciprocal) X(Pow) \
  X(Sin) X(Cos) X(Tan) X(Asin) X(Acos) X(Atan) X(Sinh) X(Cosh) X(Tanh) X(Asinh) X(Acosh) X(Atanh) \
  X(Sigmoid) X(LogSigmoid) X(Softplus) X(Silu) X(Gelu) X(GeluTanh) X(Mish) X(Elu) X(Selu) X(Celu) \
  X(Erf) X(Erfc) X(Sinc) \
  X(Relu) X(Relu6) X(LeakyRelu) X(Hardtanh) X(Abs) X(Sign) X(Floor)
// clang-format on

// The place of an op in the tables of kernels.
#define TD_PLACE(Op) Op,
struct Place {
  enum { TD_UNARY_OPS(TD_PLACE) };
};
#undef TD_PLACE

TD_NAMESPACE_END
