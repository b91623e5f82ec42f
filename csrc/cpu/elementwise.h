// Loops over elements for one instruction set. Included once per translation unit, after TD_VARIANT (and TD_SIMD_*) are
// set; nothing from the C++ library that could emit shared inline code may be used here.
#pragma once

#include "../propagate.h"
#include "kernels.h"
#include "number.h"

TD_NAMESPACE_BEGIN

// Unrolled code for each of the ascending orders `of`; an order in between is padded with zero coefficients to the
// next.
template <int... of>
struct UnrolledOrders {
  static constexpr int list[] = {of..., 0};

  template <class F>
  TD_HD static void visit(const Direction& d, F&& f) {
    int below = 0;
    const bool found = ((d.order <= of ? (padded<of>(d, below, f), true) : (below = of, false)) || ...);
    if (!found) LoopOrders::visit(d, f);
  }
  template <class K>
  TD_HD static int last(K, const Direction& d) {
    return d.order;
  }

 private:
  // A function of its own: one large function with all orders takes the compiler twice as long.
  template <int order, class F>
  __attribute__((noinline)) static void padded(Direction d, int below, F& f) {
    // Known to the compiler, so that most tests against the order vanish.
    if (d.order > order || d.order <= below) __builtin_unreachable();
    f(Const<order>{}, d);
  }
};

#if defined(TD_SIMD_AVX512)
using Orders = UnrolledOrders<1, 2, 3, 4, 6, 10>;
#elif defined(TD_SIMD_AVX2)
using Orders = UnrolledOrders<2, 4, 10>;  // fewer, for the compile time
#else
using Orders = LoopOrders;
#endif

template <class C, class S>
struct Loader {
  const S* p;
  int64_t stride;
  TD_HD Number<C> operator()(int c) const { return load_number<C>(p + c * stride); }
};

// Stores numbers and remembers where one was infinite or NaN.
template <class C, class S>
struct Storer {
  S* p;
  int64_t stride;
  Number<C>* not_finite;
  TD_HD void operator()(int c, Number<C> v) const {
    store_number(p + c * stride, v);
    *not_finite = *not_finite + v * Number<C>(0.0);
  }
};

// Calls body(pointers to the inputs, pointer to the output, stride) for each vector of elements in the range; the last
// one goes through a copy in scratch memory when it is not full.
template <class C, class S, int inputs, class Body>
TD_HD void for_each_vector(const LayoutView& layout, Range range, const S* const (&in)[inputs], S* out, void* scratch,
                           const Body& body) {
  constexpr int lanes = lanes_of<C>;
  int64_t i = range.begin;
  const S* at[inputs];
  for (; i + lanes <= range.end; i += lanes) {
    for (int n = 0; n < inputs; ++n) at[n] = in[n] + i;
    body(at, out + i, range.stride, lanes);
  }
  if (i == range.end) return;
  const int rest = int(range.end - i), size = layout.size();
  S* const copy = static_cast<S*>(scratch);
  for (int n = 0; n < inputs; ++n) {
    at[n] = copy + n * size * lanes;
    for (int c = 0; c < size; ++c) {
      for (int l = 0; l < lanes; ++l)
        copy[(n * size + c) * lanes + l] = in[n][c * range.stride + i + (l < rest ? l : 0)];
    }
  }
  S* const result = copy + inputs * size * lanes;
  body(at, result, lanes, rest);
  for (int c = 0; c < size; ++c) {
    for (int l = 0; l < rest; ++l) out[c * range.stride + i + l] = result[c * lanes + l];
  }
}

// The scratch memory: copies for a last vector (three tensors at most), then a series workspace.
template <class C, class S>
TD_HD Number<C>* workspace(const LayoutView& layout, void* scratch) {
  return reinterpret_cast<Number<C>*>(static_cast<S*>(scratch) + 3 * layout.size() * 64 / sizeof(S));
}

#ifdef TD_SIMD_BYTES

// The vector kernels give singular points, and whatever isn't finite, to the careful ones, element by element.
template <class Op, int place, class S>
void forward(const double* params, const LayoutView& layout, Range range, const S* x, S* y, void* scratch) {
  using C = Compute<Op, S>;
  const auto careful = careful_kernels<S>().forward[place];
  if constexpr (Op::local_only) {
    careful(params, layout, range, x, y, scratch);
  } else {
    const Op op(params);
    for_each_vector<C, S, 1>(layout, range, {x}, y, scratch,
                             [&](const S* const* in, S* out, int64_t stride, int count) TD_INLINE_LAMBDA {
      Number<C> not_finite(0.0);
      const auto care =
          unary_forward<Orders, false>(op, layout, Loader<C, S>{in[0], stride}, Storer<C, S>{out, stride, &not_finite},
                                       workspace<C, S>(layout, scratch));
      const auto redo = (!(not_finite == Number<C>(0.0))) | care;
      if (!any(redo)) return;
      for (int l = 0; l < count; ++l) {
        if (lane(redo, l)) careful(params, layout, Range{stride, l, l + 1}, in[0], out, scratch);
      }
    });
  }
}

template <class Op, int place, class S>
void backward(const double* params, const LayoutView& layout, Range range, const S* grad, const S* x, S* dx,
              void* scratch) {
  using C = Compute<Op, S>;
  const auto careful = careful_kernels<S>().backward[place];
  if constexpr (Op::local_only) {
    careful(params, layout, range, grad, x, dx, scratch);
  } else {
    const Op op(params);
    for_each_vector<C, S, 2>(layout, range, {grad, x}, dx, scratch,
                             [&](const S* const* in, S* out, int64_t stride, int count) TD_INLINE_LAMBDA {
      Number<C> not_finite(0.0);
      const auto care =
          unary_backward<Orders, false>(op, layout, Loader<C, S>{in[1], stride}, Loader<C, S>{in[0], stride},
                                        Storer<C, S>{out, stride, &not_finite}, workspace<C, S>(layout, scratch));
      const auto redo = (!(not_finite == Number<C>(0.0))) | care;
      if (!any(redo)) return;
      for (int l = 0; l < count; ++l) {
        if (lane(redo, l)) careful(params, layout, Range{stride, l, l + 1}, in[0], in[1], out, scratch);
      }
    });
  }
}

#endif

template <class S>
void cauchy_product(const LayoutView& layout, Range range, const S* a, const S* b, S* y, void* scratch) {
  for_each_vector<S, S, 2>(layout, range, {a, b}, y, scratch,
                           [&](const S* const* in, S* out, int64_t stride, int) TD_INLINE_LAMBDA {
    Number<S> not_finite(0.0);
    cauchy_forward<Orders>(layout, Loader<S, S>{in[0], stride}, Loader<S, S>{in[1], stride},
                           Storer<S, S>{out, stride, &not_finite}, workspace<S, S>(layout, scratch));
  });
}

template <class S>
void correlation(const LayoutView& layout, Range range, const S* b, const S* grad, S* da, void* scratch) {
  for_each_vector<S, S, 2>(layout, range, {b, grad}, da, scratch,
                           [&](const S* const* in, S* out, int64_t stride, int) TD_INLINE_LAMBDA {
    Number<S> not_finite(0.0);
    correlate<Orders>(layout, Loader<S, S>{in[0], stride}, Loader<S, S>{in[1], stride},
                      Storer<S, S>{out, stride, &not_finite}, workspace<S, S>(layout, scratch));
  });
}

TD_NAMESPACE_END

// Defines the table `symbol` of kernels for TD_SCALAR.
#define TD_FORWARD(Op) &forward<Op, Place::Op, TD_SCALAR>,
#define TD_BACKWARD(Op) &backward<Op, Place::Op, TD_SCALAR>,
#define TD_DEFINE_KERNELS(symbol)                                                              \
  TD_NAMESPACE_BEGIN                                                                           \
  static const CpuKernels<TD_SCALAR>::Forward symbol##_forward[] = {TD_UNARY_OPS(TD_FORWARD)};    \
  static const CpuKernels<TD_SCALAR>::Backward symbol##_backward[] = {TD_UNARY_OPS(TD_BACKWARD)}; \
  TD_NAMESPACE_END                                                                             \
  const taylorderiv::CpuKernels<TD_SCALAR> taylorderiv::symbol = {                             \
      taylorderiv::symbol##_forward, taylorderiv::symbol##_backward,                           \
      &taylorderiv::cauchy_product<TD_SCALAR>, &taylorderiv::correlation<TD_SCALAR>,           \
      taylorderiv::Orders::list};
