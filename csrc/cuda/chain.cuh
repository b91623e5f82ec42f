// THE kernels of the fused chain: linear -> activation -> linear -> ..., forward and backward, on a tile of points
// after another. A tile's coefficients stay in shared memory from layer to layer: matrix products go from one buffer to
// another, activations likewise.
#pragma once

#define TD_VARIANT cuda
#include <cuda_runtime.h>

#include <cstdint>

#include "chain_ops.h"
#include "chain_task.h"
#include "element.cuh"
#include "matmul.cuh"

TD_NAMESPACE_BEGIN

// Each direction at the lowest of the unrolled orders that holds it, padded with zeros.
template <int... of>
struct PaddedOrders {
  template <class F>
  TD_HD static void visit(const Direction& d, F&& f) {
    (void)((d.order <= of ? (f(Const<of>{}, d), true) : false) || ...);
  }
  template <class K>
  TD_HD static constexpr K last(K k, const Direction&) {
    return k;
  }
};

// f(row, column) for each place of a matrix, by the threads of a block.
template <class F>
__device__ __forceinline__ void for_each_place(int rows, int columns, const F& f) {
  const int rows_on = blockDim.x / columns, columns_on = blockDim.x % columns;
  int row = threadIdx.x / columns, column = threadIdx.x % columns;
  while (row < rows) {
    f(row, column);
    row += rows_on;
    column += columns_on;
    if (column >= columns) {
      column -= columns;
      ++row;
    }
  }
}

// f(S{}) with S = what the tensors hold.
template <class Number, class F>
__device__ __forceinline__ void with_storage(ChainArithmetic arithmetic, const F& f) {
  if constexpr (std::is_same_v<Number, double>) {
    f(double());
  } else if (arithmetic == ChainArithmetic::f16) {
    f(__half());
  } else if (arithmetic == ChainArithmetic::bf16) {
    f(__nv_bfloat16());
  } else {
    f(float());
  }
}

// ---------------------------------------------------------------------------------------------------------------------
// The activation of a tile's layer
// ---------------------------------------------------------------------------------------------------------------------

template <class Number>
struct ActivationTask {
  const PackedLayout& layout;
  const CudaParams& params;
  const Number *in0, *in1;
  Number* out;
  int stride, coefficients, points, columns;
  void* scratch;
};

// Functions of their own: a kernel calls them by the op's index, and needs as many registers as the largest.
template <class P, class Number, class Orders>
__device__ __noinline__ void activate(const ActivationTask<Number>& task) {
  TD_TRACE;
  const Number *const in0 = in_shared_memory(task.in0), *const in1 = in_shared_memory(task.in1);
  Number* const out = in_shared_memory(task.out);
  const int stride = task.stride, columns = task.columns, coefficients = task.coefficients;
  const int coefficient = task.points * stride;  // from one to the next
  for_each_place(task.points, covered(columns), [&](int row, int column) {
    const int place = row * stride + column;
    if (column >= columns) {
      for (int c = 0; c < coefficients; ++c) out[place + c * coefficient] = Number(0);
      return;
    }
    const Pointers p{{in0, in1, nullptr}, {out, nullptr}, coefficient, place};
    if constexpr (std::is_same_v<Orders, LoopOrders>) {
      using T = typename P::template Scratch<Number>;
      const int64_t threads = int64_t(gridDim.x) * blockDim.x, thread = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
      careful<P, Number>(task.layout, task.params, p, Strided<T>{static_cast<T*>(task.scratch) + thread, threads});
    } else {
      unrolled<P, Number, Orders, 1>(task.layout, task.params, p);
    }
  });
  const int rows = coefficients * task.points;
  for_each_place(int(round_up(rows, ChainTiling::row_step)) - rows, covered(columns),
                 [&](int row, int column) { out[(rows + row) * stride + column] = Number(0); });
}

template <template <class> class P, class Number>
__device__ __forceinline__ void activate(int op, bool loops, const ActivationTask<Number>& task) {
#define TD_CASE(Op)                        \
  case Place::Op:                          \
    activate<P<Op>, Number, Orders>(task); \
    break;
  if (loops) {
    using Orders = LoopOrders;
    switch (op) { TD_UNARY_OPS(TD_CASE) }
  } else {
    using Orders = PaddedOrders<1, 2, 4, 6, highest_chain_order>;
    switch (op) { TD_CHAIN_OPS(TD_CASE) }
  }
#undef TD_CASE
}

// ---------------------------------------------------------------------------------------------------------------------
// A tile
// ---------------------------------------------------------------------------------------------------------------------

// The tile that a block works on, and its buffers. All methods are for all threads of the block together, and need a
// barrier between one that writes a buffer or an image and one that reads it. They are no part of the kernel's code and
// the state is in memory, so that no registers are taken while they run.
template <class Number>
class ChainTile {
 public:
  Number* buffer[3];

  // The block's first tile, and from one to the next.
  __device__ explicit ChainTile(const ChainTask& task) : task_(task), tile_(blockIdx.x) {
    for (int n = 0; n < 3; ++n) buffer[n] = static_cast<Number*>(shared_memory()) + n * task.tiling.buffer;
    measure();
  }
  __device__ bool exists() const { return tile_ < task_.tiles; }
  __device__ __noinline__ void advance() {
    tile_ += gridDim.x;
    measure();
  }
  __device__ bool is_first() const { return tile_ == blockIdx.x; }

  // Columns first... of a tensor (C, points, width), to and from a buffer.
  __device__ __noinline__ void copy_in(const void* tensor, int width, int first, int columns, Number* to) const {
    with_storage<Number>(task_.arithmetic, [&](auto scalar) {
      const auto* const from = in_global_memory(static_cast<const decltype(scalar)*>(tensor));
      for_each_place(int(round_up(rows_, ChainTiling::row_step)), covered(columns), [&](int row, int column) {
        Number number(0);
        if (column < columns) {
          with_place(row, width, [&](int64_t place) { number = widened(from[place + first + column]); });
        }
        in_shared_memory(to)[row * stride() + column] = number;
      });
    });
  }
  __device__ __noinline__ void copy_out(const Number* from, void* tensor, int width, int first, int columns) const {
    with_storage<Number>(task_.arithmetic, [&](auto scalar) {
      auto* const to = in_global_memory(static_cast<decltype(scalar)*>(tensor));
      for_each_place(rows_, columns, [&](int row, int column) {
        with_place(row, width, [&](int64_t place) {
          narrow(in_shared_memory(from)[row * stride() + column], to[place + first + column]);
        });
      });
    });
  }

  // What is kept of layer i, from and to a buffer.
  __device__ __noinline__ void keep(int i, const Number* from) const {
    copy(in_shared_memory(from), in_global_memory(image(i)));
  }
  __device__ __noinline__ void recall(int i, Number* to) const {
    copy(in_global_memory(image(i)), in_shared_memory(to));
  }

  // z = h weight^T + bias. For layer 0, h receives the input first.
  __device__ __noinline__ void linear_layer(int i, Number* h, Number* z) const {
    const CudaChainLayer& layer = task_.layer[i];
    const ChainPlaces& places = task_.places[i];
    for (int first = 0; first < layer.in; first += part_columns) {
      const int columns = part(layer.in, first);
      if (i == 0) {
        copy_in(task_.x, layer.in, first, columns, h);
        __syncthreads();
      }
      // The weight's numbers for these columns are adjacent.
      multiply({h, z, stride(), rows_, packed(places.weight + int64_t(first) * covered(layer.out), layer.out), 0,
                covered(layer.out) / 8, groups(columns), layer.out,
                layer.bias == nullptr || first > 0 ? nullptr : numbers() + places.bias, points_, first > 0, ring()});
      __syncthreads();
    }
  }

  __device__ __noinline__ void activation(int i, const Number* z, Number* h) const {
    activate<Forward>(task_.layer[i].op, task_.loops[i], activation_task(i, z, nullptr, h));
  }
  // From the gradient of h to that of z.
  __device__ __noinline__ void activation_backward(int i, const Number* gradient, const Number* z, Number* out) const {
    activate<Backward>(task_.layer[i].op, task_.loops[i], activation_task(i, gradient, z, out));
  }

  // Adds to the block's sums for the gradients of layer i, from that of z and columns first... of h.
  __device__ __noinline__ void parameter_gradients(int i, const Number* gradient, const Number* h, int first) const {
    const CudaChainLayer& layer = task_.layer[i];
    const ChainPlaces& places = task_.places[i];
    const int columns = part(layer.in, first);
    const bool adding = !is_first();
    if (layer.weight_gradient != nullptr) {
      multiply_transposed({gradient, h, stride(), rows_, layer.out, covered(columns) / 8, block() + places.weight_sums,
                           first / 8, covered(layer.in) / 8, adding});
    }
    if (layer.bias_gradient == nullptr || first > 0) return;
    for (int column = threadIdx.x; column < layer.out; column += blockDim.x) {
      Number sum(0);
      for (int p = 0; p < points_; ++p) sum += in_shared_memory(gradient)[p * stride() + column];
      Number* const to = block() + places.bias_sums + column;
      *to = adding ? *to + sum : sum;
    }
  }

  // From the gradient of z to columns first... of that of h.
  __device__ __noinline__ void linear_backward(int i, const Number* gradient, int first, Number* out) const {
    const CudaChainLayer& layer = task_.layer[i];
    const int columns = part(layer.in, first);
    multiply({gradient, out, stride(), rows_, packed(task_.places[i].transposed, layer.in), first / 8,
              covered(columns) / 8, groups(layer.out), columns, nullptr, 0, false, ring()});
  }

  // Of the columns from `first` on, how many there are in a part.
  __device__ static int part(int columns, int first) {
    return columns - first < part_columns ? columns - first : part_columns;
  }

 private:
  __device__ void measure() {
    begin_ = tile_ * task_.tiling.points;
    const int64_t left = task_.points - begin_;
    points_ = left < task_.tiling.points ? int(left) : task_.tiling.points;
    rows_ = points_ * task_.coefficients;
  }
  __device__ int stride() const { return task_.tiling.stride; }
  __device__ static int groups(int columns) { return covered(columns) / Slot<Number>::group; }
  __device__ const Number* numbers() const { return static_cast<const Number*>(task_.packed); }
  __device__ Number* block() const { return static_cast<Number*>(task_.blocks) + blockIdx.x * task_.block_numbers; }
  __device__ PackedOperand<Number> packed(int64_t at, int rows) const {
    return {reinterpret_cast<const Slot<Number>*>(numbers() + at), covered(rows) / 8};
  }

  // This thread's memory for copies of weights.
  __device__ Slot<Number>* ring() const {
    void* const rings = static_cast<char*>(shared_memory()) + task_.tiling.ring_offset;
    return static_cast<Slot<Number>*>(rings) + threadIdx.x / 32 * (32 * ChainTiling::ring_slots) + lane();
  }

  // f(place) if the tile's row is in use, where it starts in a tensor (C, points, width).
  template <class F>
  __device__ void with_place(int row, int width, const F& f) const {
    const int coefficient = row / points_, point = row - coefficient * points_;
    if (row < rows_) f((coefficient * task_.points + begin_ + point) * width);
  }

  __device__ Number* image(int i) const {
    Number* const first = task_.saved == nullptr
                              ? block() + task_.sums
                              : static_cast<Number*>(task_.saved) + tile_ * task_.images * task_.tiling.buffer;
    return first + i * task_.tiling.buffer;
  }
  __device__ void copy(const Number* from, Number* to) const {
    constexpr int numbers = sizeof(uint4) / sizeof(Number);
    const int words = int(round_up(rows_, ChainTiling::row_step)) * stride() / numbers;
    for (int i = threadIdx.x; i < words; i += blockDim.x) {
      reinterpret_cast<uint4*>(to)[i] = reinterpret_cast<const uint4*>(from)[i];
    }
  }

  __device__ ActivationTask<Number> activation_task(int i, const Number* in0, const Number* in1, Number* out) const {
    return {task_.layout, task_.layer[i].params, in0,          in1, out, stride(), task_.coefficients,
            points_,      task_.layer[i].out,    task_.scratch};
  }

  __device__ void multiply(const LinearTask<Number>& task) const {
    const int blocks = int(round_up(task.rows, ChainTiling::row_step)) / ChainTiling::row_step;
    with_arithmetic<Number>(task_.arithmetic, [&](auto arithmetic) {
      using A = decltype(arithmetic);
      if constexpr (A::groups == 1) {  // else the ring is too small
        if (four_at_a_time(task.tiles, blocks)) return linear<A, 4>(task);
      }
      linear<A, 2>(task);
    });
  }
  __device__ void multiply_transposed(const OuterTask<Number>& task) const {
    const int blocks = int(round_up(task.a_columns, ChainTiling::row_step)) / ChainTiling::row_step;
    with_arithmetic<Number>(task_.arithmetic, [&](auto arithmetic) {
      using A = decltype(arithmetic);
      four_at_a_time(task.b_tiles, blocks) ? outer<A, 4>(task) : outer<A, 2>(task);
    });
  }
  // Whether four columns' tiles at once divide the tiles, and leave work for every warp.
  __device__ static bool four_at_a_time(int tiles, int blocks) {
    return tiles % 4 == 0 && blocks * (tiles / 4) >= int(blockDim.x / 32);
  }

  const ChainTask& task_;
  int64_t tile_, begin_;
  int points_, rows_;
};

// ---------------------------------------------------------------------------------------------------------------------
// The kernels
// ---------------------------------------------------------------------------------------------------------------------

// Blocks of most_threads that a multiprocessor has registers for: with 128 for a thread, the compiler needs to spill
// none; float64 takes more.
template <class Number>
inline constexpr int least_blocks = sizeof(Number) == sizeof(float) ? 2 : 1;

template <class T>
__device__ __forceinline__ void exchange(T& a, T& b) {
  const T before = a;
  a = b;
  b = before;
}

template <class Number>
__global__ void __launch_bounds__(ChainTiling::most_threads, least_blocks<Number>)
    chain_forward(const __grid_constant__ ChainTask task) {
  for (ChainTile<Number> tile(task); tile.exists(); tile.advance()) {
    Number *&h = tile.buffer[0], *&z = tile.buffer[1];
    for (int i = 0; i < task.layers; ++i) {
      tile.linear_layer(i, h, z);
      if (task.saved != nullptr && i < task.images) tile.keep(i, z);
      if (task.layer[i].op < 0) {
        exchange(h, z);
      } else {
        tile.activation(i, z, h);
        __syncthreads();
      }
    }
    const int out = task.layer[task.layers - 1].out;
    tile.copy_out(h, task.y, out, 0, out);
    __syncthreads();
  }
}

template <class Number>
__global__ void __launch_bounds__(ChainTiling::most_threads, least_blocks<Number>)
    chain_backward(const __grid_constant__ ChainTask task) {
  for (ChainTile<Number> tile(task); tile.exists(); tile.advance()) {
    Number *&g = tile.buffer[0], *&z = tile.buffer[1], *&next = tile.buffer[2];
    const int last = task.layers - 1, out = task.layer[last].out;
    if (task.saved == nullptr) {
      for (int i = 0; i < task.images; ++i) {
        tile.linear_layer(i, g, z);
        tile.keep(i, z);
        if (i == last) break;
        if (task.layer[i].op < 0) {
          exchange(g, z);
        } else {
          tile.activation(i, z, g);
        }
        __syncthreads();
      }
    }
    tile.copy_in(task.grad, out, 0, out, g);
    if (task.layer[last].op >= 0) tile.recall(last, z);
    __syncthreads();
    // g is the gradient of the layer's result, and z its numbers before the activation.
    for (int i = last; i >= 0; --i) {
      if (task.layer[i].op < 0) {
        exchange(g, next);
      } else {
        tile.activation_backward(i, g, z, next);
        __syncthreads();
      }
      if (i > 0) {
        tile.recall(i - 1, z);
        __syncthreads();
        if (task.layer[i - 1].op < 0) {
          tile.recall(i - 1, g);
        } else {
          tile.activation(i - 1, z, g);
        }
        __syncthreads();
        tile.parameter_gradients(i, next, g, 0);
        __syncthreads();
        tile.linear_backward(i, next, 0, g);
        __syncthreads();
        continue;
      }
      const int in = task.layer[0].in;
      for (int first = 0; first < in; first += part_columns) {
        tile.copy_in(task.x, in, first, tile.part(in, first), g);
        __syncthreads();
        tile.parameter_gradients(0, next, g, first);
        __syncthreads();
        if (task.dx == nullptr) continue;
        tile.linear_backward(0, next, first, g);
        __syncthreads();
        tile.copy_out(g, task.dx, in, first, tile.part(in, first));
        __syncthreads();
      }
    }
  }
}

TD_NAMESPACE_END
