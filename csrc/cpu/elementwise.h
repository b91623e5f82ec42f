// Loops over elements for one instruction set. Included once per translation unit, after TD_VARIANT (and TD_SIMD_*) are
// set; nothing from the C++ library that could emit shared inline code may be used here.
#pragma once

#include "../fixed_layouts.h"
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

#ifdef TD_SIMD_BYTES
using Orders = UnrolledOrders<1, 2, 3, 4, 6, 8, 10>;
// Fewer for the other ops, for the compile time.
template <class Op>
using OrdersOf = std::conditional_t<Op::activation, Orders, UnrolledOrders<2, 4, 10>>;
#else
using Orders = LoopOrders;
#endif

template <class C, class S>
struct Loader {
  const S* p;
  int64_t stride;
  TD_HD Number<C> operator()(int c) const { return load_number<C>(p + c * stride); }
  TD_HD Loader at(int64_t element) const { return {p + element, stride}; }
};

// Stores numbers and adds them up: the sum is infinite or NaN if one of them is.
template <class C, class S>
struct Storer {
  S* p;
  int64_t stride;
  Number<C>* sum;
  TD_HD void operator()(int c, Number<C> v) const {
    store_number(p + c * stride, v);
    *sum = *sum + v;
  }
  TD_HD Storer at(int64_t element) const { return {p + element, stride, sum}; }
};

// Calls body(pointers to the inputs, pointers to the outputs, stride, vectors, elements) for blocks of vectors, `most`
// at a time, of the elements in the range; the last vector goes through a copy in scratch memory when it is not full.
// An output may be null.
template <int most, class C, class S, int inputs, int outputs, class Body>
TD_HD void for_each_block(const LayoutView& layout, Range range, const S* const (&in)[inputs], S* const (&out)[outputs],
                          void* scratch, const Body& body) {
  constexpr int lanes = lanes_of<C>;
  int64_t i = range.begin, last = range.row > 0 ? i + range.filled : range.end;
  const S* at[inputs];
  S* to[outputs];
  while (i + lanes <= last) {
    const int64_t left = (last - i) / lanes;
    const int count = left < most ? int(left) : most;
    for (int n = 0; n < inputs; ++n) at[n] = in[n] + i;
    for (int n = 0; n < outputs; ++n) to[n] = out[n] == nullptr ? nullptr : out[n] + i;
    body(at, to, range.stride, count, count * lanes);
    i += count * lanes;
    if (range.row > 0 && i == last) {
      i += range.row - range.filled;
      last = i < range.end ? i + range.filled : i;
    }
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
  for (int n = 0; n < outputs; ++n) to[n] = out[n] == nullptr ? nullptr : copy + (inputs + n) * size * lanes;
  body(at, to, lanes, 1, rest);
  for (int n = 0; n < outputs; ++n) {
    for (int c = 0; c < size && out[n] != nullptr; ++c) {
      for (int l = 0; l < rest; ++l) out[n][c * range.stride + i + l] = to[n][c * lanes + l];
    }
  }
}

// The scratch memory: copies for a last vector (four tensors at most), then a series workspace.
template <class C, class S>
TD_HD Number<C>* workspace(const LayoutView& layout, void* scratch) {
  return reinterpret_cast<Number<C>*>(static_cast<S*>(scratch) + 4 * layout.size() * 64 / sizeof(S));
}

#ifdef TD_SIMD_BYTES

// Vectors are computed in blocks: first the seeds of all of them, then one direction of all of them after the other. So
// the processor, which can't look far ahead, has independent work at hand, and what a direction is, is found out once.
inline constexpr int block = 16;

template <class Op, class C, class S>
struct Block {
  Seed<Number<C>, Op::aux> seeds[block];
  Number<C> sum;  // of what is stored
  bool care = false;

  TD_HD Block(const Op& op, const S* x, int count) : sum(0.0) {
    // Made in place: a returned one is copied with wider loads than stores, which the processor waits for.
    for (int i = 0; i < count; ++i) op.seed(load_number<C>(x + i * lanes_of<C>), seeds[i]);
    if constexpr (Op::singular) {
      for (int i = 0; i < count; ++i) care = care || any(needs_care(op, seeds[i]));
    }
  }

  // The vector kernels give singular points, and whatever isn't finite, to the careful ones, element by element.
  template <class Redo>
  TD_HD void redo(const Op& op, int size, S* const* out, int64_t stride, int elements, const Redo& redo) const {
    if (!care && !any(!(sum * Number<C>(0.0) == Number<C>(0.0)))) return;
    for (int e = 0; e < elements; ++e) {
      bool wanted = false;
      if constexpr (Op::singular) wanted = lane(needs_care(op, seeds[e / lanes_of<C>]), e % lanes_of<C>);
      for (int c = 0; c < size; ++c) {
        for (int n = 0; n < 2; ++n) wanted = wanted || (out[n] != nullptr && !(out[n][c * stride + e] * S(0) == S(0)));
      }
      if (wanted) redo(e);
    }
  }
};

// Layouts that the compiler knows (fixed_layouts.h): all directions of `count` vectors at once, given their seeds, with
// no question at run time. What is returned is the sum of all that is stored.
template <class Op, class S>
struct FixedPasses {
  using N = Number<S>;
  using Seeds = Seed<N, Op::aux>;
  using Forward = N (*)(const Op&, const LayoutView&, const Seeds*, int count, int64_t stride, const S* x, S* y);
  using Backward = N (*)(const Op&, const LayoutView&, const Seeds*, int count, int64_t stride, const S* grad,
                         const S* x, S* dx, int64_t y_stride, S* y);

  template <class L>
  static N forward(const Op& any_op, const LayoutView& view, const Seeds* seeds, int count, int64_t stride, const S* x,
                   S* y) {
    const Op op = any_op;  // a copy that stores to memory can't change, as far as the compiler knows
    const L layout(view.weights(), view.top_share());
    N total(0.0);
    for (int i = 0; i < count; ++i) {
      const int64_t at = i * lanes_of<S>;
      const Loader<S, S> load{x + at, stride};
      N sum(0.0);  // of one vector at a time: a long chain of sums would be waited for
      forward_directions<FixedOrders, false>(op, layout, load(0), seeds[i], load, Storer<S, S>{y + at, stride, &sum},
                                             no_scratch);
      total = total + sum;
    }
    return total;
  }

  template <class L>
  static N backward(const Op& any_op, const LayoutView& view, const Seeds* seeds, int count, int64_t stride,
                    const S* grad, const S* x, S* dx, int64_t y_stride, S* y) {
    const Op op = any_op;
    const L layout(view.weights(), view.top_share());
    N total(0.0);
    for (int i = 0; i < count; ++i) {
      const int64_t at = i * lanes_of<S>;
      const Loader<S, S> load{x + at, stride}, load_grad{grad + at, stride};
      N sum(0.0), y_sum(0.0);
      backward_directions<FixedOrders, false>(op, layout, load(0), seeds[i], load, load_grad,
                                              Storer<S, S>{dx + at, stride, &sum},
                                              Storer<S, S>{y + at, y_stride, &y_sum}, no_scratch);
      total = total + (sum + y_sum);
    }
    return total;
  }

  template <class Layouts>
  struct Of;
  template <class First, class... L>
  struct Of<LayoutList<First, L...>> {
    static constexpr Forward forward[] = {&FixedPasses::forward<L>...};
    static constexpr Backward backward[] = {&FixedPasses::backward<L>...};
  };

 private:
  static constexpr N* no_scratch = nullptr;
};

template <class Op, int place, class S>
void forward(const double* params, const LayoutView& layout, Range range, const S* x, S* y, void* scratch) {
  using C = Compute<Op, S>;
  using N = Number<C>;
  const auto careful = careful_kernels<S>().forward[place];
  if constexpr (Op::local_only) {
    careful(params, layout, range, x, y, scratch);
  } else {
    constexpr int lanes = lanes_of<C>;
    const Op op(params);
    const int fixed = is_fixed_op(place) ? CpuFixedLayouts::index_of(layout) : -1;
    for_each_block<block, C, S, 1, 2>(layout, range, {x}, {y, nullptr}, scratch,
                                      [&](const S* const* in, S* const* out, int64_t stride, int count, int elements)
                                          TD_INLINE_LAMBDA {
      Block<Op, C, S> b(op, in[0], count);
      const auto redo = [&] {
        b.redo(op, layout.size(), out, stride, elements,
               [&](int e) { careful(params, layout, Range{stride, e, e + 1}, in[0], out[0], scratch); });
      };
      if constexpr (is_fixed_op(place)) {
        if (fixed >= 0) {
          using Passes = typename FixedPasses<Op, S>::template Of<CpuFixedLayouts>;
          b.sum = Passes::forward[fixed](op, layout, b.seeds, count, stride, in[0], out[0]);
          return redo();
        }
      }
      N collapsed[block];
      const Storer<C, S> store{out[0], stride, &b.sum};
      for (int i = 0; i < count; ++i) {
        store.at(i * lanes)(0, b.seeds[i].y);
        collapsed[i] = N(0.0);
      }
      for_each_direction<OrdersOf<Op>>(layout, [&](auto K, const Direction& direction) TD_INLINE_LAMBDA {
        const Direction d = direction;  // copies that stores to memory can't change, as far as the compiler knows
        const Op op_copy = op;
        const Loader<C, S> load{in[0], stride};
        N sum(0.0);
        const Storer<C, S> store{out[0], stride, &sum};
        for (int i = 0; i < count; ++i) {
          const auto load_x = load.at(i * lanes);
          forward_direction<false>(op_copy, K, d, layout, load_x(0), b.seeds[i], load_x, store.at(i * lanes),
                                   collapsed[i], workspace<C, S>(layout, scratch));
        }
        b.sum = b.sum + sum;
      });
      if (layout.collapsed()) {
        for (int i = 0; i < count; ++i) store.at(i * lanes)(layout.top(), collapsed[i]);
      }
      redo();
    });
  }
}

template <class Op, int place, class S>
void backward(const double* params, const LayoutView& layout, Range range, const S* grad, const S* x, S* dx, S* y,
              void* scratch) {
  using C = Compute<Op, S>;
  using N = Number<C>;
  const auto careful = careful_kernels<S>().backward[place];
  if constexpr (Op::local_only) {
    careful(params, layout, range, grad, x, dx, y, scratch);
  } else {
    constexpr int lanes = lanes_of<C>;
    const Op op(params);
    const int fixed = is_fixed_op(place) ? CpuFixedLayouts::index_of(layout) : -1;
    for_each_block<block, C, S, 2, 2>(layout, range, {grad, x}, {dx, y}, scratch,
                                      [&](const S* const* in, S* const* out, int64_t stride, int count, int elements)
                                          TD_INLINE_LAMBDA {
      Block<Op, C, S> b(op, in[1], count);
      const auto redo = [&] {
        b.redo(op, layout.size(), out, stride, elements,
               [&](int e) { careful(params, layout, Range{stride, e, e + 1}, in[0], in[1], out[0], out[1], scratch); });
      };
      S discarded[block * lanes];  // where there is no y
      if constexpr (is_fixed_op(place)) {
        if (fixed >= 0) {
          using Passes = typename FixedPasses<Op, S>::template Of<CpuFixedLayouts>;
          b.sum = Passes::backward[fixed](op, layout, b.seeds, count, stride, in[0], in[1], out[0],
                                          out[1] == nullptr ? 0 : stride, out[1] == nullptr ? discarded : out[1]);
          return redo();
        }
      }
      N dx0[block], collapsed[block];
      const auto store_y_to = [&](N* sum) TD_INLINE_LAMBDA {
        return out[1] == nullptr ? Storer<C, S>{discarded, 0, sum} : Storer<C, S>{out[1], stride, sum};
      };
      const Storer<C, S> store{out[0], stride, &b.sum}, store_y = store_y_to(&b.sum);
      const Loader<C, S> load_g{in[0], stride};
      for (int i = 0; i < count; ++i) {
        store_y.at(i * lanes)(0, b.seeds[i].y);
        dx0[i] = b.seeds[i].s * load_g.at(i * lanes)(0);
        collapsed[i] = N(0.0);
      }
      for_each_direction<OrdersOf<Op>>(layout, [&](auto K, const Direction& direction) TD_INLINE_LAMBDA {
        const Direction d = direction;  // copies that stores to memory can't change, as far as the compiler knows
        const Op op_copy = op;
        const Loader<C, S> load_g{in[0], stride}, load_x{in[1], stride};
        N sum(0.0);
        const Storer<C, S> store{out[0], stride, &sum}, store_y = store_y_to(&sum);
        for (int i = 0; i < count; ++i) {
          const auto load = load_x.at(i * lanes);
          backward_direction<OrdersOf<Op>, false>(op_copy, K, d, layout, load(0), b.seeds[i], load,
                                                  load_g.at(i * lanes), store.at(i * lanes), store_y.at(i * lanes),
                                                  dx0[i], collapsed[i], workspace<C, S>(layout, scratch));
        }
        b.sum = b.sum + sum;
      });
      for (int i = 0; i < count; ++i) {
        if (layout.collapsed()) {
          store.at(i * lanes)(layout.top(), b.seeds[i].s * load_g.at(i * lanes)(layout.top()));
          store_y.at(i * lanes)(layout.top(), collapsed[i]);
        }
        store.at(i * lanes)(0, dx0[i]);
      }
      redo();
    });
  }
}

#endif

template <class S>
void cauchy_product(const LayoutView& layout, Range range, const S* a, const S* b, S* y, void* scratch) {
  for_each_block<1, S, S, 2, 1>(layout, range, {a, b}, {y}, scratch,
                                [&](const S* const* in, S* const* out, int64_t stride, int, int) TD_INLINE_LAMBDA {
    Number<S> sum(0.0);
    cauchy_forward<Orders>(layout, Loader<S, S>{in[0], stride}, Loader<S, S>{in[1], stride},
                           Storer<S, S>{out[0], stride, &sum}, workspace<S, S>(layout, scratch));
  });
}

template <class S>
void correlation(const LayoutView& layout, Range range, const S* b, const S* grad, S* da, void* scratch) {
  for_each_block<1, S, S, 2, 1>(layout, range, {b, grad}, {da}, scratch,
                                [&](const S* const* in, S* const* out, int64_t stride, int, int) TD_INLINE_LAMBDA {
    Number<S> sum(0.0);
    correlate<Orders>(layout, Loader<S, S>{in[0], stride}, Loader<S, S>{in[1], stride},
                      Storer<S, S>{out[0], stride, &sum}, workspace<S, S>(layout, scratch));
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
