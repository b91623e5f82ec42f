// The fused chain for layouts that are known when it is compiled. A warp multiplies 16 points of every coefficient at
// once, so that each thread holds all coefficients of its numbers in the sums of the matrix product, and applies the
// activation to them there: what goes to shared memory is the next layer's input.
#pragma once

#include "chain.cuh"
#include "fixed_layouts.h"

TD_NAMESPACE_BEGIN

// From `from` times the weight to a layer's result: h forward; backward, where the product is the gradient of h, that
// of z too.
template <class Number>
struct FixedLayerTask {
  const Number* from;
  Number *h, *gradient;  // null where not wanted
  int stride;            // of all three
  int pitch, points;     // of a coefficient: rows, and those in use
  PackedOperand<Number> weight;
  int groups, tiles, columns;  // as LinearTask has them
  const Number* bias;          // or null
  Number* image;               // of z, written forward unless null, and read backward
  Slot<Number>* ring;
  ChainArithmetic arithmetic;
  const PackedLayout& layout;
  const CudaParams& params;
  const double* weights;  // see FixedLayout
};

// What a warp has of a layer's jets: of a thread's numbers, two are neighbours.
template <class Number_, class Layout>
struct FixedShape {
  using Number = Number_;
  static constexpr int size = Layout::size, tiles = fixed_tiles(size);
  static constexpr bool three_buffers = fixed_three_buffers(size);
  using Registers = Sums<Number, size, tiles>;
  static constexpr int pairs = Mma<Number>::sums / 2;  // in a tile
};

template <class T>
struct JetLoad {
  const T* jet;
  TD_HD T operator()(int c) const { return jet[c]; }
};
template <class T>
struct JetStore {
  T* jet;
  T* not_finite;
  TD_HD void operator()(int c, const T& value) const {
    jet[c] = value;
    *not_finite = *not_finite + value * T(0.0);
  }
};

// h = op(z). Returns whether that has to be done again, with care.
template <class Op, class Layout, int size, class T>
__device__ __forceinline__ auto activate_jet(const Op& op, const Layout& layout, const T (&z)[size], T (&h)[size]) {
  static_assert(!Op::wide && size == Layout::size);
  T not_finite(0.0);
  const auto singular = unary_forward<FixedOrders, false>(op, layout, JetLoad<T>{z}, JetStore<T>{h, &not_finite},
                                                          static_cast<T*>(nullptr));
  return (!(not_finite == T(0.0))) | singular;
}

// From the gradient of h to that of z, likewise.
template <class Op, class Layout, int size, class T>
__device__ __forceinline__ auto activate_jet_backward(const Op& op, const Layout& layout, const T (&z)[size],
                                                      const T (&gradient)[size], T (&out)[size]) {
  T not_finite(0.0);
  const auto singular = unary_backward<FixedOrders, false>(op, layout, JetLoad<T>{z}, JetLoad<T>{gradient},
                                                           JetStore<T>{out, &not_finite}, static_cast<T*>(nullptr));
  return (!(not_finite == T(0.0))) | singular;
}

// f(job, point, column) for each job of this warp: 16 points from `point` on, 8 * tiles columns from `column` on.
template <class Shape, class Number, class F>
__device__ __forceinline__ void for_each_job_of_warp(const FixedLayerTask<Number>& task, const F& f) {
  const int blocks = task.pitch / Mma<Number>::rows, jobs = blocks * (task.tiles / Shape::tiles);
  for (int job = threadIdx.x / 32; job < jobs; job += blockDim.x / 32) {
    f(job, job % blocks * Mma<Number>::rows, job / blocks * Shape::tiles * 8);
  }
}

// f(job, point, column, registers) likewise, with the product in the registers.
template <class Layout, class Number, class F>
__device__ __forceinline__ void for_each_product(const FixedLayerTask<Number>& task, const F& f) {
  using Shape = FixedShape<Number, Layout>;
  const RowOperand<Number> a{in_shared_memory(task.from), task.stride};
  for_each_job_of_warp<Shape>(task, [&](int job, int point, int column) {
    typename Shape::Registers registers;
    registers.pitch = task.pitch;
    registers.for_each([](Number& sum, int, int) { sum = Number(0); });
    with_arithmetic<Number>(task.arithmetic, [&](auto arithmetic) {
      using A = decltype(arithmetic);
      registers.template add_product<A>(
          a, point, StagedSteps<A, Shape::tiles>(task.ring, task.weight, column, task.groups), task.groups);
      if constexpr (A::splits) {
        registers.repair(a, point, task.weight, column, task.groups, Layout::size * task.pitch,
                         static_cast<const Number*>(nullptr), 0);
      }
    });
    f(job, point, column, registers);
  });
}

// A mask as bits, that of the first number being the lowest.
__device__ __forceinline__ unsigned mask_bits(bool mask) { return mask ? 1 : 0; }
__device__ __forceinline__ unsigned mask_bits(const TwinMask<bool>& mask) {
  return mask_bits(mask.lo) | mask_bits(mask.hi) << 1;
}

template <class P>
inline constexpr bool backward_pass = false;
template <class Op>
inline constexpr bool backward_pass<Backward<Op>> = true;

// The e-th number of a tile, as one or as the first of a pair.
template <class T, class Number>
__device__ __forceinline__ T number_at(const Number (&of)[Mma<Number>::sums], int e) {
  if constexpr (std::is_same_v<T, Number>) {
    return of[e];
  } else {
    return {of[e], of[e + 1]};
  }
}

// f(j, e) for each T that a thread holds of one coefficient: number e of tile j, or that and the next one.
template <class Shape, class T, class F>
__device__ __forceinline__ void for_each_number(const F& f) {
#pragma unroll
  for (int j = 0; j < Shape::tiles; ++j) {
#pragma unroll
    for (int e = 0; e < 2 * Shape::pairs; e += sizeof(T) / sizeof(typename Shape::Number)) f(j, e);
  }
}

// f(j, pair) for each pair of numbers that a thread holds of one coefficient.
template <class Shape, class F>
__device__ __forceinline__ void for_each_pair(const F& f) {
#pragma unroll
  for (int j = 0; j < Shape::tiles; ++j) {
#pragma unroll
    for (int pair = 0; pair < Shape::pairs; ++pair) f(j, pair);
  }
}

// Where z's pairs stand in the image: those of a warp next to each other. The same thread writes and reads them.
template <class Shape, class Number>
__device__ __forceinline__ Two<Number>* in_image(Number* image, int job, int c, int j, int pair) {
  const int64_t warp = ((int64_t(job) * Shape::size + c) * Shape::tiles + j) * Shape::pairs + pair;
  return reinterpret_cast<Two<Number>*>(in_global_memory(image)) + warp * 32 + lane();
}

// A number of each coefficient to shared memory: zeros where there is no such point or column.
template <class Number, int size>
__device__ __forceinline__ void write_jet(const FixedLayerTask<Number>& task, const Number (&jet)[size], Number* to,
                                          int point, int column) {
  const bool used = point < task.points && column < task.columns;
  Number* const place = in_shared_memory(to) + point * task.stride + column;
#pragma unroll
  for (int c = 0; c < size; ++c) place[c * task.pitch * task.stride] = used ? jet[c] : Number(0);
}
// The same for a pair.
template <class Number, int size>
__device__ __forceinline__ void write_jet(const FixedLayerTask<Number>& task, const Twin<Number> (&jet)[size],
                                          Number* to, int point, int column) {
  const bool first = point < task.points && column < task.columns, second = first && column + 1 < task.columns;
  Number* const place = in_shared_memory(to) + point * task.stride + column;
#pragma unroll
  for (int c = 0; c < size; ++c) {
    *reinterpret_cast<Two<Number>*>(place + c * task.pitch * task.stride) = {first ? jet[c].lo : Number(0),
                                                                             second ? jet[c].hi : Number(0)};
  }
}

// Does jets of a job again, by loops with arithmetic that copes with infinities: those of the set bits of `again`, a
// pair having two neighbouring ones. `products` are a copy of the job's, in memory.
template <class Op, bool backward, class Number, class Layout>
__device__ __noinline__ void redo_with_care(const FixedLayerTask<Number>& task, int job, int point, int column,
                                            unsigned again,
                                            const typename FixedShape<Number, Layout>::Registers& products) {
  TD_TRACE;
  using Shape = FixedShape<Number, Layout>;
  using M = Mma<Number>;
  using T = typename Forward<Op>::template Scratch<Number>;
  T memory[scratch_size(highest_chain_order, Op::aux)];
  Number z[Shape::size], gradient[Shape::size];
#pragma unroll 1
  for (int n = 0; n < Shape::tiles * M::sums; ++n) {
    if ((again >> n) % 2 == 0) continue;
    const int j = n / M::sums, e = n % M::sums;
    const int row = point + M::row(e), at = column + j * 8 + M::column(e);
    if (row >= task.points || at >= task.columns) continue;
#pragma unroll 1
    for (int c = 0; c < Shape::size; ++c) {
      gradient[c] = z[c] = products.of[c][j][e];
      if constexpr (backward) {
        const Two<Number>& both = *in_image<Shape>(task.image, job, c, j, e / 2);
        z[c] = e % 2 == 0 ? both.first : both.second;
      }
    }
    const int place = row * task.stride + at, coefficient = task.pitch * task.stride;
    const auto careful_pass = [&](auto pass, Number* out) {
      using P = decltype(pass);
      // Coefficients of z and the gradient are next to each other, those of the result are not.
      Number result[Shape::size];
      careful<P, Number>(task.layout, task.params,
                         Pointers{{backward_pass<P> ? gradient : z, z, nullptr}, {result, nullptr}, 1, 0},
                         Strided<T>{memory, 1});
#pragma unroll 1
      for (int c = 0; c < Shape::size; ++c) out[place + c * coefficient] = result[c];
    };
    if constexpr (!backward || Shape::three_buffers) careful_pass(Forward<Op>(task.params.values), task.h);
    if constexpr (backward) careful_pass(Backward<Op>(task.params.values), task.gradient);
  }
}

// h of a job from its z, which is in the registers.
template <class Op, class Layout, class Number>
__device__ __forceinline__ void activate_job(const FixedLayerTask<Number>& task, int job, int point, int column,
                                             const typename FixedShape<Number, Layout>::Registers& z_registers) {
  using Shape = FixedShape<Number, Layout>;
  using M = Mma<Number>;
  // Pairs as one number have twice the arithmetic in flight, in twice the registers.
  using T = std::conditional_t<(Shape::size <= 4 && sizeof(Number) == sizeof(float)), Twin<Number>, Number>;
  const Layout layout(task.weights, task.layout.top_share());
  const Op op(task.params.values);
  unsigned again = 0;
  for_each_number<Shape, T>([&](int j, int e) {
    T z[Shape::size], h[Shape::size];
#pragma unroll
    for (int c = 0; c < Shape::size; ++c) z[c] = number_at<T>(z_registers.of[c][j], e);
    again |= mask_bits(activate_jet(op, layout, z, h)) << (j * M::sums + e);
    write_jet(task, h, task.h, point + M::row(e), column + j * 8 + M::column(e));
  });
  if (again != 0) {
    const typename Shape::Registers copy = z_registers;
    redo_with_care<Op, false, Number, Layout>(task, job, point, column, again, copy);
  }
}

template <class Op, class Number, class Layout>
__device__ __noinline__ void fixed_layer(const FixedLayerTask<Number>& task) {
  TD_TRACE;
  using Shape = FixedShape<Number, Layout>;
  using M = Mma<Number>;
  for_each_product<Layout>(task, [&](int job, int point, int column, typename Shape::Registers& registers) {
    if (task.bias != nullptr) {
      const Number* const bias = in_global_memory(task.bias) + column;
      for_each_pair<Shape>([&](int j, int pair) {
        registers.of[0][j][2 * pair] += bias[j * 8 + M::column(0)];
        registers.of[0][j][2 * pair + 1] += bias[j * 8 + M::column(1)];
      });
    }
    if (task.image != nullptr) {
      for_each_pair<Shape>([&](int j, int pair) {
#pragma unroll
        for (int c = 0; c < Shape::size; ++c) {
          *in_image<Shape>(task.image, job, c, j, pair) = {registers.of[c][j][2 * pair],
                                                           registers.of[c][j][2 * pair + 1]};
        }
      });
    }
    if (task.h != nullptr) activate_job<Op, Layout>(task, job, point, column, registers);
  });
}

// The activation alone: from the image to h.
template <class Op, class Number, class Layout>
__device__ __noinline__ void fixed_activation(const FixedLayerTask<Number>& task) {
  TD_TRACE;
  using Shape = FixedShape<Number, Layout>;
  for_each_job_of_warp<Shape>(task, [&](int job, int point, int column) {
    typename Shape::Registers z;
    for_each_pair<Shape>([&](int j, int pair) {
#pragma unroll
      for (int c = 0; c < Shape::size; ++c) {
        const Two<Number> both = *in_image<Shape>(task.image, job, c, j, pair);
        z.of[c][j][2 * pair] = both.first;
        z.of[c][j][2 * pair + 1] = both.second;
      }
    });
    activate_job<Op, Layout>(task, job, point, column, z);
  });
}

template <class Op, class Number, class Layout>
__device__ __noinline__ void fixed_layer_backward(const FixedLayerTask<Number>& task) {
  TD_TRACE;
  using Shape = FixedShape<Number, Layout>;
  using M = Mma<Number>;
  const Layout layout(task.weights, task.layout.top_share());
  const Op op(task.params.values);
  for_each_product<Layout>(task, [&](int job, int point, int column, typename Shape::Registers& registers) {
    unsigned again = 0;
    for_each_pair<Shape>([&](int j, int pair) {
      Two<Number> image[Shape::size];
#pragma unroll
      for (int c = 0; c < Shape::size; ++c) image[c] = *in_image<Shape>(task.image, job, c, j, pair);
#pragma unroll
      for (int lane = 0; lane < 2; ++lane) {
        const int e = 2 * pair + lane, row = point + M::row(e), at = column + j * 8 + M::column(e);
        Number z[Shape::size], gradient[Shape::size], result[Shape::size];
#pragma unroll
        for (int c = 0; c < Shape::size; ++c) {
          z[c] = lane == 0 ? image[c].first : image[c].second;
          gradient[c] = registers.of[c][j][e];
        }
        unsigned bad = 0;
        if constexpr (Shape::three_buffers) {
          bad = mask_bits(activate_jet(op, layout, z, result));
          write_jet(task, result, task.h, row, at);
        }
        bad |= mask_bits(activate_jet_backward(op, layout, z, gradient, result));
        write_jet(task, result, task.gradient, row, at);
        again |= bad << (j * M::sums + e);
      }
    });
    if (again != 0) {
      const typename Shape::Registers copy = registers;
      redo_with_care<Op, true, Number, Layout>(task, job, point, column, again, copy);
    }
  });
}

template <class Number, class Layout>
class FixedChainTile : public ChainTile<Number> {
  using Base = ChainTile<Number>;

 public:
  __device__ explicit FixedChainTile(const ChainTask& task) : Base(task) {}

  // h = op(from weight^T + bias), and z to the image unless that is null. h may be null.
  __device__ void layer(int i, const Number* from, Number* h, bool keeping) const {
    const FixedLayerTask<Number> task = describe(i, i, from, h, nullptr, false, keeping);
#define TD_CASE(Op)                        \
  case Place::Op:                          \
    fixed_layer<Op, Number, Layout>(task); \
    break;
    switch (Base::task_.layer[i].op) { TD_FIXED_OPS(TD_CASE) }
#undef TD_CASE
  }

  // h from the image of z.
  __device__ void activation_again(int i, Number* h) const {
    const FixedLayerTask<Number> task = describe(i, i, nullptr, h, nullptr, false, true);
#define TD_CASE(Op)                             \
  case Place::Op:                               \
    fixed_activation<Op, Number, Layout>(task); \
    break;
    switch (Base::task_.layer[i].op) { TD_FIXED_OPS(TD_CASE) }
#undef TD_CASE
  }

  // From the gradient of layer i + 1's z to h of layer i, and the gradient of its z. h is null where there
  // are two buffers only.
  __device__ void layer_backward(int i, const Number* from, Number* h, Number* gradient) const {
    const FixedLayerTask<Number> task = describe(i, i + 1, from, h, gradient, true, true);
#define TD_CASE(Op)                                 \
  case Place::Op:                                   \
    fixed_layer_backward<Op, Number, Layout>(task); \
    break;
    switch (Base::task_.layer[i].op) { TD_FIXED_OPS(TD_CASE) }
#undef TD_CASE
  }

 private:
  // A task whose results are of layer i and whose weight is layer w's.
  __device__ FixedLayerTask<Number> describe(int i, int w, const Number* from, Number* h, Number* gradient,
                                             bool backward, bool with_image) const {
    const ChainTask& task = Base::task_;
    const CudaChainLayer &layer = task.layer[i], &weight = task.layer[w];
    const ChainPlaces& places = task.places[w];
    return {from,
            h,
            gradient,
            Base::stride(),
            Base::pitch_,
            Base::points_,
            Base::packed(backward ? places.transposed : places.weight, layer.out),
            Base::groups(backward ? weight.out : weight.in),
            covered(layer.out) / 8,
            layer.out,
            backward || layer.bias == nullptr ? nullptr : Base::numbers() + places.bias,
            with_image ? Base::image(i) : nullptr,
            Base::ring(),
            task.arithmetic,
            task.layout,
            layer.params,
            task.direction_weights};
  }
};

template <class Number, class Layout>
__global__ void __launch_bounds__(ChainTiling::most_threads, least_blocks<Number>)
    fixed_chain_forward(const __grid_constant__ ChainTask task) {
  const int last = task.layers - 1, in = task.layer[0].in, out = task.layer[last].out;
  for (FixedChainTile<Number, Layout> tile(task); tile.exists(); tile.advance()) {
    Number *&h = tile.buffer[0], *&next = tile.buffer[1];
    tile.copy_in(task.x, in, 0, in, h);
    __syncthreads();
    for (int i = 0; i < last; ++i) {
      tile.layer(i, h, next, task.saved != nullptr);
      __syncthreads();
      exchange(h, next);
    }
    tile.linear_layer(last, h, next);
    tile.copy_out(next, task.y, out, 0, out);
    __syncthreads();
  }
}

template <class Number, class Layout>
__global__ void __launch_bounds__(ChainTiling::most_threads, least_blocks<Number>)
    fixed_chain_backward(const __grid_constant__ ChainTask task) {
  const int last = task.layers - 1, in = task.layer[0].in, out = task.layer[last].out;
  for (FixedChainTile<Number, Layout> tile(task); tile.exists(); tile.advance()) {
    Number *&h = tile.buffer[0], *&gradient = tile.buffer[1];
    if (task.saved == nullptr) {
      tile.copy_in(task.x, in, 0, in, h);
      __syncthreads();
      for (int i = 0; i < last; ++i) {
        tile.layer(i, h, i + 1 < last ? gradient : nullptr, true);
        __syncthreads();
        exchange(h, gradient);
      }
    }
    tile.copy_in(task.grad, out, 0, out, gradient);
    __syncthreads();
    for (int i = last; i > 0; --i) {
      // `gradient` is that of layer i's z.
      if constexpr (FixedShape<Number, Layout>::three_buffers) {
        Number*& next = tile.buffer[2];
        tile.layer_backward(i - 1, gradient, h, next);
        __syncthreads();
        tile.parameter_gradients(i, gradient, h, 0);
        __syncthreads();
        exchange(gradient, next);
      } else {
        tile.activation_again(i - 1, h);
        __syncthreads();
        tile.parameter_gradients(i, gradient, h, 0);
        __syncthreads();
        tile.layer_backward(i - 1, gradient, nullptr, h);
        __syncthreads();
        exchange(gradient, h);
      }
    }
    tile.copy_in(task.x, in, 0, in, h);
    __syncthreads();
    tile.parameter_gradients(0, gradient, h, 0);
    __syncthreads();
    if (task.dx == nullptr) continue;
    tile.linear_backward(0, gradient, 0, h);
    __syncthreads();
    tile.copy_out(h, task.dx, in, 0, in);
    __syncthreads();
  }
}

// Of each of the layouts, by its index.
#define TD_KERNEL(...) &fixed_chain_forward<Number, FixedLayout<__VA_ARGS__>>,
template <class Number>
ChainKernel fixed_forward_kernel(int layout) {
  static constexpr ChainKernel kernels[] = {TD_FIXED_LAYOUTS(TD_KERNEL)};
  return kernels[layout];
}
#undef TD_KERNEL
#define TD_KERNEL(...) &fixed_chain_backward<Number, FixedLayout<__VA_ARGS__>>,
template <class Number>
ChainKernel fixed_backward_kernel(int layout) {
  static constexpr ChainKernel kernels[] = {TD_FIXED_LAYOUTS(TD_KERNEL)};
  return kernels[layout];
}
#undef TD_KERNEL

TD_NAMESPACE_END
