// THE CUDA kernel: a pass over all elements, for every storage type and order.
#pragma once

#define TD_VARIANT cuda
#include <cuda_runtime.h>

#include <array>
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

// At least one block per multiprocessor is all that is asked for: for more, the compiler would spill registers.
template <class P, class S, class Orders, int width>
__global__ void __launch_bounds__(CudaVariant::block_size, 1)
    elementwise(const __grid_constant__ PackedLayout layout, const __grid_constant__ CudaParams params, int64_t chunks,
                const void* __restrict__ in0, const void* __restrict__ in1, const void* __restrict__ in2,
                void* __restrict__ out0, void* __restrict__ out1, void* __restrict__ memory) {
  const int64_t thread = int64_t(blockIdx.x) * blockDim.x + threadIdx.x, threads = int64_t(gridDim.x) * blockDim.x;
  for (int64_t i = thread; i < chunks; i += threads) {
    const Pointers p{{in0, in1, in2}, {out0, out1}, chunks, i};
    if constexpr (std::is_same_v<Orders, LoopOrders>) {
      using T = typename P::template Scratch<Widened<S>>;
      careful<P, S>(layout, params, p, Strided<T>{static_cast<T*>(memory) + thread, threads});
    } else {
      unrolled<P, S, Orders, width>(layout, params, p);
    }
  }
}

// ---------------------------------------------------------------------------------------------------------------------
// The tables
// ---------------------------------------------------------------------------------------------------------------------

template <class P, class S, int order, int width = 1>
constexpr CudaVariant narrow_variant() {
  return {&elementwise<P, S, PaddedOrder<order>, width>, order, width, sizeof(S), 0};
}

// Several elements per thread: accesses of at most 16 bytes, and live series within a budget of registers.
template <class P, class S, int order>
constexpr CudaVariant wide_variant() {
  constexpr int words = sizeof(typename P::template Number<Widened<S>>) / sizeof(float);
  constexpr int fitting = 64 / (P::series * (order + 1) * words), most = 16 / int(sizeof(S));
  constexpr int width = fitting < most ? fitting : most;
  return narrow_variant<P, S, order, width >= 8 ? 8 : width >= 4 ? 4 : width >= 2 ? 2 : 1>();
}

template <class P, class S>
constexpr CudaVariant loop_variant() {
  using T = typename P::template Scratch<Widened<S>>;
  return {&elementwise<P, S, LoopOrders, 1>, 0, 1, sizeof(S), int(scratch_size(0, P::aux) * sizeof(T))};
}

// Narrow code serves rows that don't start at a chunk.
template <class P, class S>
constexpr auto make_variants() {
  if constexpr (!P::unrolled) {
    return std::array{loop_variant<P, S>()};
  } else if constexpr (sizeof(S) == 2) {
    // Fewer, for the compile time.
    return std::array{wide_variant<P, S, 4>(), narrow_variant<P, S, highest_order>(), loop_variant<P, S>()};
  } else {
    return std::array{wide_variant<P, S, 2>(),
                      wide_variant<P, S, 4>(),
                      narrow_variant<P, S, 4>(),
                      wide_variant<P, S, 6>(),
                      narrow_variant<P, S, highest_order>(),
                      loop_variant<P, S>()};
  }
}
template <class P, class S>
inline constexpr auto variants = make_variants<P, S>();

// By the op's index.
#define TD_VARIANTS(Op) variants<P<Op>, S>.data(),
template <template <class> class P, class S>
inline constexpr const CudaVariant* unary_variants[] = {TD_UNARY_OPS(TD_VARIANTS)};
#undef TD_VARIANTS

TD_NAMESPACE_END
