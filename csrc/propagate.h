// One element's coefficients through an op: forward, backward, and the Cauchy product, over all directions.
//
// Generic in
//   T       the number type: float, double, a SIMD vector, a dual number;
//   L       the layout (layout.h);
//   Orders  how a run-time order becomes a compile-time one: Orders::visit(direction, f) calls f(K, direction) with K a
//           Const<k> or an int, K >= direction.order (padded with zeros when larger);
//           Orders::last(K, direction) is the highest order in which gradients are summed;
//   A       the series in scratch memory that an int K works in (series.h): scratch_size() numbers.
// load(c) reads coefficient c, store(c, value) writes it. Formulas: y_k = (1/k) sum_j j x_j s_{k-j}, and for the
// gradient, dx_j = sum_{k>=j} s_{k-j} dy_k.
#pragma once

#include "careful.h"
#include "dual.h"
#include "layout.h"
#include "unary_ops.h"

#include <cstdint>

TD_NAMESPACE_BEGIN

// Any order, by loops.
struct LoopOrders {
  static constexpr int list[] = {0};  // the unrolled orders: none

  template <class F>
  TD_HD static void visit(const Direction& d, F&& f) {
    f(d.order, d);
  }
  TD_HD static int last(int, const Direction& d) { return d.order; }
};

// One direction's series: registers when the order is a Const, scratch memory otherwise.
template <class T, int aux, class K, class A>
struct Work {
  using Number = T;
  T x[K::value + 1], dx[K::value + 1], y[K::value + 1], s[K::value + 1], g[K::value + 1];
  T a[aux > 0 ? aux : 1][K::value + 1];
  TD_HD Work(K, A) {}
};

template <class T, int aux, class A>
struct Work<T, aux, int, A> {
  using Number = T;
  A x, dx, y, s, g, a[aux > 0 ? aux : 1];
  TD_HD Work(int order, A scratch) {
    const int n = order + 1;
    x = scratch, dx = x + n, y = dx + n, s = y + n, g = s + n;
    for (int i = 0; i < (aux > 0 ? aux : 1); ++i) a[i] = g + (i + 1) * n;
  }
};

// Numbers of scratch memory that an op with `aux` auxiliary series needs at run-time orders up to `order`.
constexpr int64_t scratch_size(int64_t order, int aux) { return (5 + (aux > 0 ? aux : 1)) * (order + 1); }

template <class K>
TD_HD auto previous(K k) {
  if constexpr (is_const<K>) {
    return Const<K::value - 1>{};
  } else {
    return k - 1;
  }
}

// ---------------------------------------------------------------------------------------------------------------------
// Coefficients of one direction in and out of memory
// ---------------------------------------------------------------------------------------------------------------------

template <class T, class K, class L, class Load, class A>
TD_HD void load_series(K K_, const Direction& d, const L& layout, const Load& load, A& x) {
  const T carried = d.carries_top ? load(layout.top()) * T(layout.top_share()) : T(0.0);
  for_each<1>(K_, [&](auto k) TD_INLINE_LAMBDA {
    const T value = load(d.place(k));
    x[k] = k <= d.stored() ? value : k == d.order ? carried : T(0.0);
  });
}

template <class T, class K, class L, class Load, class A>
TD_HD void load_gradient(K K_, const Direction& d, const L& layout, const Load& load, A& g) {
  g[0] = T(0.0);  // the primal's own term is counted once, not per direction
  const T shared = d.collapsed() ? load(layout.top()) * T(d.weight) : T(0.0);
  for_each<1>(K_, [&](auto k) TD_INLINE_LAMBDA {
    const T value = load(d.place(k));
    g[k] = k <= d.stored() ? value : k == d.order ? shared : T(0.0);
  });
}

template <class T, class K, class Store, class A>
TD_HD void store_series(K K_, const Direction& d, const Store& store, T& collapsed, const A& y) {
  for_each<1>(K_, [&](auto k) TD_INLINE_LAMBDA {
    if (k <= d.stored()) {
      store(d.place(k), y[k]);
    } else if (k == d.order) {
      collapsed = collapsed + T(d.weight) * y[k];
    }
  });
}

// ---------------------------------------------------------------------------------------------------------------------
// Unary ops
// ---------------------------------------------------------------------------------------------------------------------

template <class Op, class T>
TD_HD Seed<T, Op::aux> seed_of(const Op& op, const T& x) {
  Seed<T, Op::aux> v;
  op.seed(x, v);
  return v;
}

// A seed's derivative is what the recurrence gives at order 1.
template <class Op, class S>
TD_HD Seed<Dual<S>, Op::aux> seed_of(const Op& op, const Dual<S>& x) {
  const Seed<S, Op::aux> v = seed_of(op, x.v);
  Seed<Dual<S>, Op::aux> out;
  if constexpr (Op::piecewise_linear) {
    out.y = {v.y, v.s * x.d};
    out.s = {v.s, S(0.0)};
  } else {
    Work<S, Op::aux, Const<1>, S*> w(Const<1>{}, nullptr);
    w.x[0] = x.v, w.dx[0] = S(0.0), w.y[0] = v.y, w.s[0] = v.s;
    for (int i = 0; i < Op::aux; ++i) w.a[i][0] = v.a[i];
    w.x[1] = w.dx[1] = x.d;
    w.y[1] = w.s[0] * x.d;
    op.step(Const<1>{}, w);
    out.y = {w.y[0], w.y[1]};
    out.s = {w.s[0], w.s[1]};
    for (int i = 0; i < Op::aux; ++i) out.a[i] = {w.a[i][0], w.a[i][1]};
  }
  return out;
}

// Whether an op can be propagated by local(): see unary_ops.h.
template <class Op>
inline constexpr bool has_local = Op::singular || Op::local_only;

template <class Op, class T>
TD_HD auto needs_care(const Op& op, const Seed<T, Op::aux>& v) {
  if constexpr (Op::singular) {
    return op.needs_care(v.s);
  } else {
    return false;
  }
}

// Taylor coefficients of phi' at the point x, j = 0..n.
template <class Op, class T, class A>
TD_HD void local_coefficients(const Op& op, const T& x, int n, A c) {
  op.local(double(x), n, [&](int j, double value) { c[j] = T(value); });
}

template <class Op, class S, class A>
TD_HD void local_coefficients(const Op& op, const Dual<S>& x, int n, A c) {
  op.local(double(x.v), n + 1, [&](int j, double value) {
    if (j <= n) c[j].v = S(value);
    if (j >= 1) c[j - 1].d = S(j * value) * x.d;
  });
}

// The value and the slope by local(), without auxiliary series.
template <class Op, class T>
TD_HD Seed<T, Op::aux> local_seed_of(const Op& op, const T& x) {
  Seed<T, Op::aux> v;
  if constexpr (Op::local_only) {
    v.y = op.value(x);
  } else {
    op.seed(x, v);
  }
  T c[2];
  local_coefficients(op, x, 1, c);
  v.s = c[0];
  return v;
}

template <class Op, class S>
TD_HD Seed<Dual<S>, Op::aux> local_seed_of(const Op& op, const Dual<S>& x) {
  const Seed<S, Op::aux> v = local_seed_of(op, x.v);
  Dual<S> c[2];
  local_coefficients(op, x, 1, c);
  Seed<Dual<S>, Op::aux> out;
  out.y = {v.y, v.s * x.d};
  out.s = c[0];
  return out;
}

// The slope series by Horner's rule in x(t) - x_0: right where the recurrence is not (singular points), and slower.
template <class Op, class W>
TD_HD_COLD void propagate_local(const Op& op, int order, W& w) {
  using T = typename W::Number;
  auto c = w.a[0];
  local_coefficients(op, w.x[0], order, c);
  TD_ROLLED
  for (int k = 1; k <= order; ++k) w.s[k] = T(0.0);
  w.s[0] = c[order];
  TD_ROLLED
  for (int j = order - 1; j >= 0; --j) {
    TD_ROLLED
    for (int k = order; k >= 1; --k) w.s[k] = cauchy<1>(k, w.x, w.s);
    w.s[0] = c[j];
  }
  TD_ROLLED
  for (int k = 1; k <= order; ++k) w.y[k] = integrate(k, w.dx, w.s);
}

// y_1..y_K and s_0..s_K (s_K only if `with_last_slope`) of one direction from x_0..x_K.
template <bool local, bool with_last_slope, class Op, class T, class K, class W>
TD_HD void propagate(const Op& op, K K_, const Seed<T, Op::aux>& v, W& w) {
  w.y[0] = v.y;
  w.s[0] = v.s;
  for_each<1>(K_, [&](auto k) TD_INLINE_LAMBDA { w.dx[k] = T(double(k)) * w.x[k]; });
  if constexpr (local) {
    propagate_local(op, K_, w);
  } else if constexpr (Op::piecewise_linear) {
    for_each<1>(K_, [&](auto k) TD_INLINE_LAMBDA {
      w.s[k] = T(0.0);
      w.y[k] = v.s * w.x[k];
    });
  } else {
    for (int i = 0; i < Op::aux; ++i) w.a[i][0] = v.a[i];
    for_each<1>(previous(K_), [&](auto k) TD_INLINE_LAMBDA {
      w.y[k] = integrate(k, w.dx, w.s);
      op.step(k, w);
    });
    w.y[K_] = integrate(K_, w.dx, w.s);
    if constexpr (with_last_slope) op.step(K_, w);
  }
}

template <bool local, class Op, class T>
TD_HD Seed<T, Op::aux> make_seed(const Op& op, const T& x) {
  if constexpr (local) {
    return local_seed_of(op, x);
  } else {
    return seed_of(op, x);
  }
}

// One direction: y_1..y_K from x_1..x_K, given v = make_seed<local>(op, x0).
template <bool local, class Op, class T, class K, class L, class Load, class Store, class A>
TD_HD void forward_direction(const Op& op, K K_, const Direction& d, const L& layout, const T& x0,
                             const Seed<T, Op::aux>& v, const Load& load, const Store& store, T& collapsed, A scratch) {
  Work<T, Op::aux, K, A> w(K_, scratch);
  w.x[0] = x0;
  load_series<T>(K_, d, layout, load, w.x);
  propagate<local, false>(op, K_, v, w);
  store_series<T>(K_, d, store, collapsed, w.y);
}

// Adds the direction's share to the primal's gradient dx0. store_y and `collapsed` get the result of the forward pass.
template <class Orders, bool local, class Op, class T, class K, class L, class LoadX, class LoadG, class Store,
          class StoreY, class A>
TD_HD void backward_direction(const Op& op, K K_, const Direction& d, const L& layout, const T& x0,
                              const Seed<T, Op::aux>& v, const LoadX& load_x, const LoadG& load_g, const Store& store,
                              const StoreY& store_y, T& dx0, T& collapsed, A scratch) {
  Work<T, Op::aux, K, A> w(K_, scratch);
  w.x[0] = x0;
  load_series<T>(K_, d, layout, load_x, w.x);
  load_gradient<T>(K_, d, layout, load_g, w.g);
  propagate<local, true>(op, K_, v, w);
  store_series<T>(K_, d, store_y, collapsed, w.y);
  dx0 = dx0 + correlation(Const<0>{}, K_, Orders::last(K_, d), w.s, w.g);
  for_each<1>(K_, [&](auto j) TD_INLINE_LAMBDA {
    if (j <= d.stored()) store(d.place(j), correlation(j, K_, Orders::last(K_, d), w.s, w.g));
  });
}

// Stores nothing.
struct Nowhere {
  template <class T>
  TD_HD void operator()(int, const T&) const {}
};

// All directions of an element, given x0 and v = make_seed<local>(op, x0).
template <class Orders, bool local, class Op, class T, class L, class Load, class Store, class A>
TD_HD void forward_directions(const Op& op, const L& layout, const T& x0, const Seed<T, Op::aux>& v, const Load& load,
                              const Store& store, A scratch) {
  store(0, v.y);
  T collapsed(0.0);
  for_each_direction<Orders>(layout, [&](auto K, const Direction& d) TD_INLINE_LAMBDA {
    forward_direction<local>(op, K, d, layout, x0, v, load, store, collapsed, scratch);
  });
  if (layout.collapsed()) store(layout.top(), collapsed);
}

template <class Orders, bool local, class Op, class T, class L, class LoadX, class LoadG, class Store, class StoreY,
          class A>
TD_HD void backward_directions(const Op& op, const L& layout, const T& x0, const Seed<T, Op::aux>& v,
                               const LoadX& load_x, const LoadG& load_g, const Store& store, const StoreY& store_y,
                               A scratch) {
  store_y(0, v.y);
  T dx0 = v.s * load_g(0), collapsed(0.0);
  for_each_direction<Orders>(layout, [&](auto K, const Direction& d) TD_INLINE_LAMBDA {
    backward_direction<Orders, local>(op, K, d, layout, x0, v, load_x, load_g, store, store_y, dx0, collapsed, scratch);
  });
  if (layout.collapsed()) {
    store(layout.top(), v.s * load_g(layout.top()));
    store_y(layout.top(), collapsed);
  }
  store(0, dx0);
}

// Returns where the recurrence isn't good enough and the element has to be redone with local = true.
template <class Orders, bool local, class Op, class L, class Load, class Store, class A>
TD_HD auto unary_forward(const Op& op, const L& layout, const Load& load, const Store& store, A scratch) {
  using T = NumberIn<A>;
  const T x0 = load(0);
  const Seed<T, Op::aux> v = make_seed<local>(op, x0);
  forward_directions<Orders, local>(op, layout, x0, v, load, store, scratch);
  return needs_care(op, v);
}

template <class Orders, bool local, class Op, class L, class LoadX, class LoadG, class Store, class A,
          class StoreY = Nowhere>
TD_HD auto unary_backward(const Op& op, const L& layout, const LoadX& load_x, const LoadG& load_g, const Store& store,
                          A scratch, const StoreY& store_y = {}) {
  using T = NumberIn<A>;
  const T x0 = load_x(0);
  const Seed<T, Op::aux> v = make_seed<local>(op, x0);
  backward_directions<Orders, local>(op, layout, x0, v, load_x, load_g, store, store_y, scratch);
  return needs_care(op, v);
}

// Coefficients and their tangents as dual numbers; and only the tangents of dual numbers.
template <class Value, class Tangent>
struct DualLoad {
  const Value& value;
  const Tangent& tangent;
  TD_HD auto operator()(int c) const { return Dual{value(c), tangent(c)}; }
};
template <class Store>
struct TangentStore {
  const Store& store;
  template <class S>
  TD_HD void operator()(int c, const Dual<S>& v) const {
    store(c, v.d);
  }
};

// The gradient of <grad_grad, dx(grad, x)>: in grad it is the tangent of y along grad_grad, and, the second derivative
// of <grad, y(x)> being symmetric, in x it is the tangent of dx along grad_grad. The scratch memory holds dual numbers.
template <class Orders, bool local, class Op, class L, class LoadGG, class LoadG, class LoadX, class StoreG,
          class StoreX, class A>
TD_HD auto unary_double_backward(const Op& op, const L& layout, const LoadGG& load_grad_grad, const LoadG& load_grad,
                                 const LoadX& load_x, const StoreG& store_grad, const StoreX& store_x, A scratch) {
  const auto zero = [](int) { return decltype(load_x(0))(0.0); };
  const DualLoad<LoadX, LoadGG> x{load_x, load_grad_grad};
  const DualLoad<LoadG, decltype(zero)> grad{load_grad, zero};
  unary_forward<Orders, local>(op, layout, x, TangentStore<StoreG>{store_grad}, scratch);
  return unary_backward<Orders, local>(op, layout, x, grad, TangentStore<StoreX>{store_x}, scratch);
}

// The recurrence, then by local() where that breaks down: run(local) does one and says whether it needs care.
template <class Op, class Run>
TD_HD void with_care(const Run& run) {
  if constexpr (Op::local_only) {
    run(std::true_type{});
  } else {
    const bool care = run(std::false_type{});
    if constexpr (Op::singular) {
      if (care) run(std::true_type{});
    }
  }
}

// What an op computes in, with coefficients of type S.
template <class Op, class S>
using Compute = std::conditional_t<Op::wide, double, S>;

// ---------------------------------------------------------------------------------------------------------------------
// Products of two jets
// ---------------------------------------------------------------------------------------------------------------------

template <class Orders, class L, class LoadA, class LoadB, class Store, class A>
TD_HD void cauchy_forward(const L& layout, const LoadA& load_a, const LoadB& load_b, const Store& store, A scratch) {
  using T = NumberIn<A>;
  const T a0 = load_a(0), b0 = load_b(0);
  store(0, a0 * b0);
  T collapsed(0.0);
  for_each_direction<Orders>(layout, [&](auto K, const Direction& d) TD_INLINE_LAMBDA {
    Work<T, 0, decltype(K), A> w(K, scratch);
    w.x[0] = a0;
    w.s[0] = b0;
    load_series<T>(K, d, layout, load_a, w.x);
    load_series<T>(K, d, layout, load_b, w.s);
    for_each<1>(K, [&](auto k) TD_INLINE_LAMBDA { w.y[k] = cauchy(k, w.x, w.s); });
    store_series<T>(K, d, store, collapsed, w.y);
  });
  if (layout.collapsed()) store(layout.top(), collapsed);
}

// The gradient of cauchy_forward with respect to a, given b and the gradient g of the product.
template <class Orders, class L, class LoadB, class LoadG, class Store, class A>
TD_HD void correlate(const L& layout, const LoadB& load_b, const LoadG& load_g, const Store& store, A scratch) {
  using T = NumberIn<A>;
  const T b0 = load_b(0);
  T da0 = b0 * load_g(0);
  for_each_direction<Orders>(layout, [&](auto K, const Direction& d) TD_INLINE_LAMBDA {
    Work<T, 0, decltype(K), A> w(K, scratch);
    load_series<T>(K, d, layout, load_b, w.s);
    load_gradient<T>(K, d, layout, load_g, w.g);
    w.s[0] = b0;
    da0 = da0 + correlation(Const<0>{}, K, d.order, w.s, w.g);
    for_each<1>(K, [&](auto j) TD_INLINE_LAMBDA {
      if (j <= d.stored()) store(d.place(j), correlation(j, K, d.order, w.s, w.g));
    });
  });
  if (layout.collapsed()) store(layout.top(), b0 * load_g(layout.top()));
  store(0, da0);
}

TD_NAMESPACE_END
