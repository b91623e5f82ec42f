// THE CUDA kernel: a pass over all elements, for every storage type and order.
#pragma once

#define TD_VARIANT cuda
#include <cuda_runtime.h>

#include <array>
#include <cstdint>

#include "element.cuh"

TD_NAMESPACE_BEGIN

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

// Several elements per thread: accesses of at most 16 bytes, and live series within a budget of registers, beyond which
// an H200 moves fewer bytes, not more.
template <class P, class S, int order>
constexpr CudaVariant wide_variant() {
  constexpr int words = sizeof(typename P::template Number<Widened<S>>) / sizeof(float);
  constexpr int fitting = 96 / (P::series * (order + 1) * words), most = 16 / int(sizeof(S));
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
    return std::array{wide_variant<P, S, 2>(), wide_variant<P, S, 4>(), narrow_variant<P, S, highest_order>(),
                      loop_variant<P, S>()};
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
