// Loops over elements for one instruction set. Included once per translation unit, after TD_VARIANT (and TD_SIMD_*) are
// set; nothing from the C++ library that could emit shared inline code may be used here.
#pragma once

#include "../propagate.h"
#include "kernels.h"
#include "number.h"

TD_NAMESPACE_BEGIN

// Any order, by loops.
struct LoopOrders {
  static constexpr int list[] = {0};
  template <class F>
  TD_HD static void visit(const Direction& d, F&& f) {
    f(d.order, d);
  }
};

// Unrolled code for each of the ascending orders `of`; an order in between is padded with zero coefficients to the next.
template <int... of>
struct UnrolledOrders {
  static constexpr int list[] = {of..., 0};

  template <class F>
  TD_HD static void visit(const Direction& d, F&& f) {
    int below = 0;
    const bool found = ((d.order <= of ? (padded<of>(d, below, f), true) : (below = of, false)) || ...);
    if (!found) LoopOrders::visit(d, f);
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

template <class S>
struct Loader {
  const S* p;
  int64_t stride;
  TD_HD Number<S> operator()(int c) const { return load_number(p + c * stride); }
};
template <class S>
struct Storer {
  S* p;
  int64_t stride;
  TD_HD void operator()(int c, Number<S> v) const { store_number(p + c * stride, v); }
};
template <class S>
struct ScalarLoader {
  const S* p;
  int64_t stride;
  TD_HD S operator()(int c) const { return p[c * stride]; }
};
template <class S>
struct ScalarStorer {
  S* p;
  int64_t stride;
  TD_HD void operator()(int c, S v) const { p[c * stride] = v; }
};

// Calls body(pointers to the inputs, pointer to the output, stride) for each vector of elements in the range; the last
// one goes through a copy in scratch memory when it is not full.
template <class S, int inputs, class Body>
TD_HD void for_each_vector(const CpuLayout& layout, Range range, const S* const (&in)[inputs], S* out, void* scratch,
                           const Body& body) {
  constexpr int lanes = lanes_of<S>;
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
      for (int l = 0; l < lanes; ++l) copy[(n * size + c) * lanes + l] = in[n][c * range.stride + i + (l < rest ? l : 0)];
    }
  }
  S* const result = copy + inputs * size * lanes;
  body(at, result, lanes, rest);
  for (int c = 0; c < size; ++c) {
    for (int l = 0; l < rest; ++l) out[c * range.stride + i + l] = result[c * lanes + l];
  }
}

// The scratch memory: copies for a last vector (three tensors at most), then a series workspace.
template <class T, class S>
TD_HD T* workspace(const CpuLayout& layout, void* scratch) {
  return reinterpret_cast<T*>(static_cast<S*>(scratch) + 3 * layout.size() * lanes_of<S>);
}

template <class Op, class S>
void forward(const double* params, const CpuLayout& layout, Range range, const S* x, S* y, void* scratch) {
  const Op op(params);
  const auto redo = [&](const S* const* in, S* out, int64_t stride, int l) {
    if constexpr (has_local<Op>) {
      unary_forward<LoopOrders, true>(op, layout, ScalarLoader<S>{in[0] + l, stride}, ScalarStorer<S>{out + l, stride},
                                      workspace<S, S>(layout, scratch));
    }
  };
  for_each_vector<S, 1>(layout, range, {x}, y, scratch,
                        [&](const S* const* in, S* out, int64_t stride, int count) TD_INLINE_LAMBDA {
    if constexpr (!Op::local_only) {
      const auto care = unary_forward<Orders, false>(op, layout, Loader<S>{in[0], stride}, Storer<S>{out, stride},
                                                     workspace<Number<S>, S>(layout, scratch));
      if constexpr (Op::singular) {
        if (!any(care)) return;
        for (int l = 0; l < count; ++l) {
          if (lane(care, l)) redo(in, out, stride, l);
        }
      }
    } else {
      for (int l = 0; l < count; ++l) redo(in, out, stride, l);
    }
  });
}

template <class Op, class S>
void backward(const double* params, const CpuLayout& layout, Range range, const S* grad, const S* x, S* dx,
              void* scratch) {
  const Op op(params);
  const auto redo = [&](const S* const* in, S* out, int64_t stride, int l) {
    if constexpr (has_local<Op>) {
      unary_backward<LoopOrders, true>(op, layout, ScalarLoader<S>{in[1] + l, stride},
                                       ScalarLoader<S>{in[0] + l, stride}, ScalarStorer<S>{out + l, stride},
                                       workspace<S, S>(layout, scratch));
    }
  };
  for_each_vector<S, 2>(layout, range, {grad, x}, dx, scratch,
                        [&](const S* const* in, S* out, int64_t stride, int count) TD_INLINE_LAMBDA {
    if constexpr (!Op::local_only) {
      const auto care =
          unary_backward<Orders, false>(op, layout, Loader<S>{in[1], stride}, Loader<S>{in[0], stride},
                                        Storer<S>{out, stride}, workspace<Number<S>, S>(layout, scratch));
      if constexpr (Op::singular) {
        if (!any(care)) return;
        for (int l = 0; l < count; ++l) {
          if (lane(care, l)) redo(in, out, stride, l);
        }
      }
    } else {
      for (int l = 0; l < count; ++l) redo(in, out, stride, l);
    }
  });
}

template <class S>
void cauchy_product(const CpuLayout& layout, Range range, const S* a, const S* b, S* y, void* scratch) {
  for_each_vector<S, 2>(layout, range, {a, b}, y, scratch,
                        [&](const S* const* in, S* out, int64_t stride, int) TD_INLINE_LAMBDA {
    cauchy_forward<Orders>(layout, Loader<S>{in[0], stride}, Loader<S>{in[1], stride}, Storer<S>{out, stride},
                           workspace<Number<S>, S>(layout, scratch));
  });
}

template <class S>
void correlation(const CpuLayout& layout, Range range, const S* b, const S* grad, S* da, void* scratch) {
  for_each_vector<S, 2>(layout, range, {b, grad}, da, scratch,
                        [&](const S* const* in, S* out, int64_t stride, int) TD_INLINE_LAMBDA {
    correlate<Orders>(layout, Loader<S>{in[0], stride}, Loader<S>{in[1], stride}, Storer<S>{out, stride},
                      workspace<Number<S>, S>(layout, scratch));
  });
}

TD_NAMESPACE_END

// Defines the table `symbol` of kernels for TD_SCALAR.
#define TD_FORWARD(Op) &forward<Op, TD_SCALAR>,
#define TD_BACKWARD(Op) &backward<Op, TD_SCALAR>,
#define TD_DEFINE_KERNELS(symbol)                                                              \
  TD_NAMESPACE_BEGIN                                                                           \
  static const CpuKernels<TD_SCALAR>::Forward symbol##_forward[] = {TD_UNARY_OPS(TD_FORWARD)};    \
  static const CpuKernels<TD_SCALAR>::Backward symbol##_backward[] = {TD_UNARY_OPS(TD_BACKWARD)}; \
  TD_NAMESPACE_END                                                                             \
  const taylorderiv::CpuKernels<TD_SCALAR> taylorderiv::symbol = {                             \
      taylorderiv::symbol##_forward, taylorderiv::symbol##_backward,                           \
      &taylorderiv::cauchy_product<TD_SCALAR>, &taylorderiv::correlation<TD_SCALAR>,           \
      taylorderiv::Orders::list};
