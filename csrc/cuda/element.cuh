// What a thread does to one element, or to a few adjacent ones: unrolled code, and loops where that isn't good enough.
#pragma once

#include <cstdint>

#include "kernels.h"
#include "passes.cuh"
#include "storage.cuh"
#include "strided.cuh"

TD_NAMESPACE_BEGIN

inline constexpr int highest_order = 10;  // of unrolled code

// One order: lower ones are padded with zeros. Where these meet an infinity, the result is NaN and redone with care.
template <int order>
struct PaddedOrder {
  template <class F>
  TD_HD static void visit(const Direction& d, F&& f) {
    f(Const<order>{}, d);
  }
  template <class K>
  TD_HD static constexpr K last(K k, const Direction&) {
    return k;
  }
};

// The tensors, and the chunk in them that is being worked on.
struct Pointers {
  const void* in[3];
  void* out[2];
  int64_t chunks, chunk;
};

template <class S, int width, class Number>
struct Io {
  const Pointers& p;
  Number& not_finite;
  TD_HD Load<S, width, Number> load(int n) const {
    return {static_cast<const Word<S, width>*>(p.in[n]) + p.chunk, p.chunks};
  }
  TD_HD Store<S, width, Number> store(int n) const {
    return {static_cast<Word<S, width>*>(p.out[n]) + p.chunk, p.chunks, &not_finite};
  }
};

// One element, by loops, with arithmetic that copes with infinities. A function of its own: what it needs in registers
// is no burden on the unrolled code, which calls it for few elements.
template <class P, class S>
TD_HD_COLD void careful(const PackedLayout& layout, const CudaParams& params, const Pointers& p,
                        Strided<typename P::template Scratch<Widened<S>>> scratch) {
  using Number = typename P::template Careful<Widened<S>>;
  const P pass(params.values);
  Number not_finite(0.0);
  const Io<S, 1, Number> io{p, not_finite};
  if constexpr (std::is_void_v<typename P::Op>) {
    pass.template run<LoopOrders, false>(layout, io, scratch);
  } else {
    with_care<typename P::Op>(
        [&](auto local) { return pass.template run<LoopOrders, decltype(local)::value>(layout, io, scratch); });
  }
}

// A chunk, by unrolled code.
template <class P, class S, class Orders, int width>
TD_HD void unrolled(const PackedLayout& layout, const CudaParams& params, const Pointers& p) {
  using Number = Numbers<typename P::template Number<Widened<S>>, width>;
  Number not_finite(0.0);
  const Io<S, width, Number> io{p, not_finite};
  const P pass(params.values);
  if constexpr (std::is_void_v<typename P::Op>) {
    pass.template run<Orders, false>(layout, io, static_cast<Number*>(nullptr));
  } else {
    const auto singular = pass.template run<Orders, false>(layout, io, static_cast<Number*>(nullptr));
    const auto again = (!(not_finite == Number(0.0))) | singular;
    for_each_set(again, [&](int lane) {
      using T = typename P::template Scratch<Widened<S>>;
      T memory[scratch_size(highest_order, P::aux)];
      Pointers element = p;
      element.chunks *= width;
      element.chunk = p.chunk * width + lane;
      careful<P, S>(layout, params, element, Strided<T>{memory, 1});
    });
  }
}

TD_NAMESPACE_END
