// The fused chain for layouts that are known when it is compiled. A block has 16 points, and each of its warps some of
// every layer's columns, in all coefficients: a thread holds all coefficients of its numbers in the sums of the matrix
// product, and applies the activation to them there. Shared memory only passes them on to the other warps.
#pragma once

#include "chain.cuh"  // first: it says that this is for CUDA

#include "../fixed_layouts.h"
#include "jets.cuh"

TD_NAMESPACE_BEGIN

// What a thread holds of a warp's 16 points and 8 * tiles columns.
template <class Number, int size, int tiles>
struct JetRegisters {
  Number of[size][tiles][4];
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
__device__ __forceinline__ bool activate_jet(const Op& op, const Layout& layout, const T (&z)[size], T (&h)[size]) {
  static_assert(!Op::wide && size == Layout::size);
  T not_finite(0.0);
  const auto singular = unary_forward<FixedOrders, false>(op, layout, JetLoad<T>{z}, JetStore<T>{h, &not_finite},
                                                          static_cast<T*>(nullptr));
  return (!(not_finite == T(0.0))) | singular;
}

// From the gradient of h to that of z, and h again, likewise.
template <class Op, class Layout, int size, class T>
__device__ __forceinline__ bool activate_jet_backward(const Op& op, const Layout& layout, const T (&z)[size],
                                                      const T (&gradient)[size], T (&out)[size], T (&h)[size]) {
  T not_finite(0.0);
  const auto singular =
      unary_backward<FixedOrders, false>(op, layout, JetLoad<T>{z}, JetLoad<T>{gradient}, JetStore<T>{out, &not_finite},
                                         static_cast<T*>(nullptr), JetStore<T>{h, &not_finite});
  return (!(not_finite == T(0.0))) | singular;
}

template <class Number>
__device__ __forceinline__ bool is_finite(Number x) {
  return x * Number(0) == Number(0);
}

// A tile's matrix product of jets and a packed weight, of which `depth` columns are in use.
template <class Number, int size>
struct JetProduct {
  Jets<Number, size> from;
  PackedOperand<Number> weight;
  int depth;

  // registers = the product's 8 * tiles columns from tile `first` on.
  template <class A, int tiles>
  __device__ __forceinline__ void multiply(JetRegisters<Number, size, tiles>& registers, int first) const {
    constexpr int step = eights_of_step<A>, groups_of_eight = 8 / Slot<Number>::group;
#pragma unroll
    for (int c = 0; c < size; ++c) {
#pragma unroll
      for (int j = 0; j < tiles; ++j) {
#pragma unroll
        for (int e = 0; e < 4; ++e) registers.of[c][j][e] = Number(0);
      }
    }
    const int eights = (depth + 8 * step - 1) / (8 * step) * step;
    const Slot<Number>* at = weight.place(first * 8, 0);
    const int group = weight.tiles * 32;  // slots from one to the next
    Slot<Number> next[tiles][A::groups];
    const auto read = [&] {
#pragma unroll
      for (int g = 0; g < A::groups; ++g) {
#pragma unroll
        for (int j = 0; j < tiles; ++j) next[j][g] = at[g * group + j * 32];
      }
    };
    read();
#pragma unroll 1
    for (int eight = 0; eight < eights; eight += step) {
      typename A::Right right[tiles];
#pragma unroll
      for (int j = 0; j < tiles; ++j) right[j] = A::right([&](int g) { return next[j][g]; });
      at += step * groups_of_eight * group;
      if (eight + step < eights) read();
#pragma unroll
      for (int c = 0; c + 1 < size; c += 2) {
        const typename A::Left left[] = {left_operand<A>(eight, c), left_operand<A>(eight, c + 1)};
        multiply_all<A>({registers.of[c], registers.of[c + 1]}, left, right);
      }
      if constexpr (size % 2 == 1) {
        const typename A::Left left[] = {left_operand<A>(eight, size - 1)};
        multiply_all<A>({registers.of[size - 1]}, left, right);
      }
    }
  }

  template <class A>
  __device__ __forceinline__ typename A::Left left_operand(int eight, int c) const {
    Four<Number> f[eights_of_step<A>];
#pragma unroll
    for (int s = 0; s < eights_of_step<A>; ++s) f[s] = from.rows(eight + s, c);
    return left_of<A>(f);
  }

  // A number of the product, as IEEE arithmetic has it.
  __device__ Number number(int point, int column, int c) const {
    Number sum(0);
#pragma unroll 1
    for (int k = 0; k < depth; ++k) sum += from.p[from.place(point, k, c)] * weight.number(column, k);
    return sum;
  }
};

// Those of the numbers that aren't finite once more, where the arithmetic splits numbers into sums.
template <class Number, int size>
__device__ __noinline__ void repair(JetRegisters<Number, size, 1>& registers, JetProduct<Number, size> product,
                                    int first) {
  TD_TRACE;
  using M = Mma<Number>;
#pragma unroll 1
  for (int n = 0; n < size * 4; ++n) {
    Number& number = registers.of[n / 4][0][n % 4];
    if (is_finite(number)) continue;
    number = product.number(M::row(n % 4), first * 8 + M::column(n % 4), n / 4);
  }
}

// A warp's share of a layer's results, or of their gradient.
struct WarpColumns {
  int first;    // tile of 8 columns
  int columns;  // of the layer, in use
  int points;   // likewise
};

// Where a thread's e-th number of a fragment of sums is among those kept for the backward pass.
template <class Number>
__device__ constexpr int place_in_image(int e) {
  return sizeof(Number) == sizeof(float) ? e : e % 2 * 2 + e / 2;
}

template <class P>
inline constexpr bool backward_pass = false;
template <class Op>
inline constexpr bool backward_pass<Backward<Op>> = true;

// Functions of their own get copies of what they read, never a reference to a tile: nvcc 13.0 takes what follows a call
// that knows where pointers to shared memory stand for unreachable.

// Does jets again, by loops with arithmetic that copes with infinities: those of the set bits of `again`. In the
// backward pass the product is h's gradient; the registers receive z's, and h receives h. In the forward pass, what is
// kept of z is corrected, too, unless there is no image.
template <class Op, bool backward, class Layout, class Number, int size, int tiles>
__device__ __noinline__ void redo_with_care(JetRegisters<Number, size, tiles>& registers, unsigned again,
                                            JetProduct<Number, size> product, WarpColumns share, const Number* bias,
                                            Number* image, Jets<Number, size, true> h, const PackedLayout& layout,
                                            const CudaParams& params) {
  TD_TRACE;
  using M = Mma<Number>;
  using T = typename Forward<Op>::template Scratch<Number>;
  T memory[scratch_size(highest_chain_order, Op::aux)];
  Number z[size], gradient[size], result[size];
#pragma unroll 1
  for (int n = 0; n < tiles * 4; ++n) {
    if ((again >> n) % 2 == 0) continue;
    const int j = n / 4, e = n % 4, point = M::row(e), column = (share.first + j) * 8 + M::column(e);
    if (point >= share.points || column >= share.columns) continue;  // will be zeros
#pragma unroll 1
    for (int c = 0; c < size; ++c) {
      gradient[c] = z[c] = product.number(point, column, c);
    }
    if (bias != nullptr) z[0] += bias[column];
    if (image != nullptr) {
#pragma unroll 1
      for (int c = 0; c < size; ++c) {
        Number& kept = image[((c * tiles + j) * 32 + lane()) * 4 + place_in_image<Number>(e)];
        backward ? z[c] = kept : kept = z[c];
      }
    }
    // The layout's loops want coefficients next to each other.
    const auto careful_pass = [&](auto pass) {
      using P = decltype(pass);
      careful<P, Number>(layout, params,
                         Pointers{{backward_pass<P> ? gradient : z, z, nullptr}, {result, nullptr}, 1, 0},
                         Strided<T>{memory, 1});
    };
    if constexpr (backward) {
      careful_pass(Forward<Op>(params.values));
#pragma unroll 1
      for (int c = 0; c < size; ++c) h.p[h.place(point, column, c)] = result[c];
      careful_pass(Backward<Op>(params.values));
    } else {
      careful_pass(Forward<Op>(params.values));
    }
#pragma unroll 1
    for (int c = 0; c < size; ++c) registers.of[c][j][e] = result[c];
  }
}

// The gradient of a weight, transposed, 16 * row_tiles by 32 of it: sums over points and coefficients.
template <class Number, int row_tiles>
struct WeightSums {
  static constexpr int pairs = 2;
  Number of[row_tiles][2 * pairs][4];

  template <class A, int size>
  __device__ __forceinline__ void sum(const Jets<Number, size, true>& h, const Jets<Number, size>& gradient, int row,
                                      int pair) {
    constexpr int step = eights_of_step<A>;
#pragma unroll
    for (int i = 0; i < row_tiles; ++i) {
#pragma unroll
      for (int j = 0; j < 2 * pairs; ++j) {
#pragma unroll
        for (int e = 0; e < 4; ++e) of[i][j][e] = Number(0);
      }
    }
#pragma unroll 1
    for (int c = 0; c < size; ++c) {
#pragma unroll
      for (int half = 0; half < 2; half += step) {
        typename A::Right right[2 * pairs];
#pragma unroll
        for (int j = 0; j < pairs; ++j) {
          Four<Number> f[step];
#pragma unroll
          for (int s = 0; s < step; ++s) f[s] = gradient.columns(pair + j, half + s, c);
#pragma unroll
          for (int which = 0; which < 2; ++which) right[2 * j + which] = right_of<A>(f, which);
        }
#pragma unroll
        for (int i = 0; i < row_tiles; ++i) {
          Four<Number> f[step];
#pragma unroll
          for (int s = 0; s < step; ++s) f[s] = h.columns(row + i, half + s, c);
          const typename A::Left left[] = {left_of<A>(f)};
          multiply_all<A>({of[i]}, left, right);
        }
      }
    }
  }
  __device__ __forceinline__ bool is_finite() const {
    Number not_finite(0);
#pragma unroll
    for (int i = 0; i < row_tiles; ++i) {
#pragma unroll
      for (int j = 0; j < 2 * pairs; ++j) {
#pragma unroll
        for (int e = 0; e < 4; ++e) not_finite += of[i][j][e] * Number(0);
      }
    }
    return not_finite == Number(0);
  }
};

template <class Number, int size, int row_tiles>
__device__ __noinline__ void repair(WeightSums<Number, row_tiles>& sums, Jets<Number, size, true> h,
                                    Jets<Number, size> gradient, int row, int pair) {
  TD_TRACE;
  constexpr int tiles = 2 * WeightSums<Number, row_tiles>::pairs;
#pragma unroll 1
  for (int n = 0; n < row_tiles * tiles * 4; ++n) {
    const int i = n / (tiles * 4), j = n / 4 % tiles, e = n % 4;
    Number& sum = sums.of[i][j][e];
    if (is_finite(sum)) continue;
    int r, column;
    product_of_columns_at<Number>(row + i, 2 * pair + j, e, lane(), r, column);
    sum = Number(0);
#pragma unroll 1
    for (int k = 0; k < size * ChainTiling::fixed_points; ++k) {
      const int point = k % ChainTiling::fixed_points, c = k / ChainTiling::fixed_points;
      sum += h.p[h.place(point, r, c)] * gradient.p[gradient.place(point, column, c)];
    }
  }
}

// A tile of 16 points. All methods are for all threads of the block together.
template <class Number, class Layout>
class FixedTile {
  static constexpr int size = Layout::size, tiles = fixed_tiles(size, sizeof(Number)),
                       points = ChainTiling::fixed_points;
  using M = Mma<Number>;
  using J = Jets<Number, size>;
  using JForLeft = Jets<Number, size, true>;
  using Product = JetProduct<Number, size>;

 public:
  using Registers = JetRegisters<Number, size, tiles>;
  J h, gradient;    // buffers
  JForLeft kept_h;  // the same as h

  // The block's first tile, and from one to the next.
  __device__ explicit FixedTile(const ChainTask& task)
      : h{static_cast<Number*>(shared_memory())},
        gradient{h.p + task.tiling.buffer},
        kept_h{h.p},
        task_(task),
        tile_(blockIdx.x) {
    // Whatever a product takes of columns that nothing was written to must be finite.
    const int words = int(task.tiling.shared_bytes / 16);
    for (int n = threadIdx.x; n < words; n += blockDim.x) static_cast<uint4*>(shared_memory())[n] = {0, 0, 0, 0};
    __syncthreads();
  }
  __device__ __forceinline__ bool exists() const { return tile_ < task_.tiles; }
  __device__ __forceinline__ void advance() { tile_ += gridDim.x; }

  // A tensor (C, points, width), and zeros where there is no such point, and in as many columns as products may take.
  // Nobody may read the buffer.
  template <class To>
  __device__ __forceinline__ void copy_in(const void* tensor, int width, const To& to) const {
    if (width % ChainTiling::column_step != 0) {
      const int pieces = covered(width) / 8 * size * int(32 * sizeof(Four<Number>) / 16);
      uint4* const piece = reinterpret_cast<uint4*>(to.p);
      for (int i = threadIdx.x; i < pieces; i += blockDim.x) piece[i] = {0, 0, 0, 0};
      __syncthreads();
    }
    with_storage<Number>(task_.arithmetic, [&](auto scalar) {
      const auto* const from = in_global_memory(static_cast<const decltype(scalar)*>(tensor));
      constexpr int at_once = 2;
      const int of_coefficient = points * width, numbers = size * of_coefficient, used = used_points() * width;
      for (int first = threadIdx.x; first < numbers; first += at_once * blockDim.x) {
        Number number[at_once];
        int place[at_once];
#pragma unroll
        for (int n = 0; n < at_once; ++n) {
          const int i = first + n * blockDim.x, c = i / of_coefficient, rest = i - c * of_coefficient;
          const int point = rest / width;
          place[n] = To::place(point, rest - point * width, c);
          const bool there = i < numbers && rest < used;
          number[n] = there ? widened(from[(c * task_.points + begin()) * width + rest]) : Number(0);
        }
#pragma unroll
        for (int n = 0; n < at_once; ++n) {
          if (first + n * int(blockDim.x) < numbers) to.p[place[n]] = number[n];
        }
      }
    });
  }

  // From h to the next layer's h, unless that isn't wanted, and z to the image if `keeping`. Ends with a barrier.
  __device__ __forceinline__ void layer(int i, bool keeping, bool activating = true) const {
    const CudaChainLayer& layer = task_.layer[i];
    const WarpColumns share = share_of(i);
    Registers registers;
    if (takes_part(i)) {
      const Product product{h, packed(task_.places[i].weight, layer.out), layer.in};
      multiply(product, registers, share.first);
      const Number* const bias = layer.bias == nullptr ? nullptr : numbers() + task_.places[i].bias;
      if (bias != nullptr) {
        const Number* const of_thread = in_global_memory(bias) + share.first * 8 + M::column(0);
#pragma unroll
        for (int j = 0; j < tiles; ++j) {
#pragma unroll
          for (int e = 0; e < 4; ++e) registers.of[0][j][e] += of_thread[j * 8 + e % 2];
        }
      }
      if (keeping) {
        Number* const to = in_global_memory(image(i));
#pragma unroll
        for (int j = 0; j < tiles; ++j) {
#pragma unroll
          for (int c = 0; c < size; ++c) {
            Number* const at = to + ((c * tiles + j) * 32 + lane()) * 4;
            write_four(at, at + 2, JForLeft::in_pieces(registers.of[c][j]));
          }
        }
      }
#define TD_CASE(Op)                                                                                         \
  case Place::Op:                                                                                           \
    activate<Op>(registers, product, share, bias, Op(layer.params.values), i, keeping ? image(i) : nullptr, \
                 activating);                                                                               \
    break;
      switch (layer.op) { TD_FIXED_OPS(TD_CASE) }
#undef TD_CASE
    }
    if (!activating) return;
    __syncthreads();
    if (takes_part(i)) store(registers, share, false, h);
    __syncthreads();
  }

  // From the gradient of layer i + 1's z to h of layer i, in its buffer, and the gradient of its z.
  __device__ __forceinline__ void layer_backward(int i, Registers& registers) const {
    const CudaChainLayer& layer = task_.layer[i];
    const WarpColumns share = share_of(i);
    if (!takes_part(i)) return;
    const Product product{gradient, packed(task_.places[i + 1].transposed, layer.out), task_.layer[i + 1].out};
    // What was kept of z is on its way during the product, to where the thread will put h.
    const Number* const kept = in_global_memory(image(i));
#pragma unroll
    for (int j = 0; j < tiles; ++j) {
#pragma unroll
      for (int c = 0; c < size; ++c) {
        const Number* const at = kept + ((c * tiles + j) * 32 + lane()) * 4;
#pragma unroll
        for (int n = 0; n < int(sizeof(Number) / sizeof(float)); ++n) {
          copy_16_bytes_async(kept_h.piece(share.first + j, c, n), at + 2 * n);
        }
      }
    }
    close_group_of_copies();
    multiply(product, registers, share.first);
    wait_for_copies<0>();
#define TD_CASE(Op)                                                               \
  case Place::Op:                                                                 \
    activate_backward<Op>(registers, product, share, Op(layer.params.values), i); \
    break;
    switch (layer.op) { TD_FIXED_OPS(TD_CASE) }
#undef TD_CASE
  }
  __device__ __forceinline__ void store_gradient(int i, Registers& registers) const {
    if (takes_part(i)) store(registers, share_of(i), true, gradient);
  }

  // Adds to the block's sums for the gradients of layer i, from that of z and h.
  __device__ __forceinline__ void parameter_gradients(int i) const {
    const CudaChainLayer& layer = task_.layer[i];
    const ChainPlaces& places = task_.places[i];
    Number* const sums = in_global_memory(block());
    if (layer.weight_gradient != nullptr) {
      if (is_thin(layer.out)) {
        thin_gradient(kept_h, layer.in, gradient, layer.out, sums + places.weight_sums, task_.packed_columns(layer.in),
                      1);
      } else if (is_thin(layer.in)) {
        thin_gradient(gradient, layer.out, kept_h, layer.in, sums + places.weight_sums, 1,
                      task_.packed_columns(layer.in));
      } else {
        weight_gradient<sizeof(Number) == sizeof(float) ? 2 : 1>(layer, sums + places.weight_sums);
      }
    }
    if (layer.bias_gradient == nullptr) return;
    for (int column = threadIdx.x; column < layer.out; column += blockDim.x) {
      Number sum(0);
#pragma unroll
      for (int p = 0; p < points; ++p) sum += gradient.p[J::place(p, column, 0)];
      add(sums + places.bias_sums + column, sum);
    }
  }

  // y = h weight^T + bias of the last layer, which has no activation, and the gradient of the first layer's input.
  __device__ __forceinline__ void last_layer() const {
    const int i = task_.layers - 1;
    const CudaChainLayer& layer = task_.layer[i];
    const Product product{h, packed(task_.places[i].weight, layer.out), layer.in};
    const Number* const bias = layer.bias == nullptr ? nullptr : numbers() + task_.places[i].bias;
    if (is_thin(layer.out)) {
      thin_product(product, bias, layer.out, task_.y);
    } else {
      copy_out(product, bias, layer.out, task_.y);
    }
  }
  __device__ __forceinline__ void input_gradient() const {
    const CudaChainLayer& layer = task_.layer[0];
    copy_out({gradient, packed(task_.places[0].transposed, layer.in), layer.out}, nullptr, layer.in, task_.dx);
  }

 private:
  __device__ static int warp() { return threadIdx.x / 32; }
  __device__ int64_t begin() const { return tile_ * points; }
  __device__ int used_points() const {
    const int64_t left = task_.points - begin();
    return left < points ? int(left) : points;
  }
  __device__ const Number* numbers() const { return static_cast<const Number*>(task_.packed); }
  __device__ Number* block() const { return static_cast<Number*>(task_.blocks) + blockIdx.x * task_.block_numbers; }
  __device__ PackedOperand<Number> packed(int64_t at, int rows) const {
    return {reinterpret_cast<const Slot<Number>*>(numbers() + at), task_.packed_columns(rows) / 8};
  }
  // This warp's part of what is kept of layer i.
  __device__ Number* image(int i) const {
    Number* const first = task_.saved == nullptr
                              ? block() + task_.sums
                              : static_cast<Number*>(task_.saved) + tile_ * task_.images * task_.image;
    return first + i * task_.image + warp() * (size * tiles * 128);
  }
  __device__ WarpColumns share_of(int i) const { return {warp() * tiles, task_.layer[i].out, used_points()}; }
  __device__ bool takes_part(int i) const { return warp() * tiles * 8 < covered(task_.layer[i].out); }

  template <int some_tiles>
  __device__ __forceinline__ void multiply(const Product& product, JetRegisters<Number, size, some_tiles>& registers,
                                           int first) const {
    with_arithmetic<Number>(
        task_.arithmetic, [&](auto arithmetic) { product.template multiply<decltype(arithmetic)>(registers, first); });
  }

  template <class Op>
  __device__ __forceinline__ void activate(Registers& registers, const Product& product, const WarpColumns& share,
                                           const Number* bias, const Op& op, int i, Number* kept,
                                           bool activating) const {
    const Layout layout(task_.direction_weights, task_.layout.top_share());
    unsigned again = 0;
    // f(z, j, e) for each jet.
    const auto for_each_jet = [&](const auto& f) {
#pragma unroll
      for (int j = 0; j < tiles; ++j) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          Number z[size];
#pragma unroll
          for (int c = 0; c < size; ++c) z[c] = registers.of[c][j][e];
          again |= unsigned(f(z, j, e)) << (j * 4 + e);
        }
      }
    };
    if (activating) {
      for_each_jet([&](const Number(&z)[size], int j, int e) {
        Number result[size];
        const bool careless = activate_jet(op, layout, z, result);
#pragma unroll
        for (int c = 0; c < size; ++c) registers.of[c][j][e] = result[c];
        return careless;
      });
    } else {
      for_each_jet([](const Number(&z)[size], int, int) {
        Number not_finite(0);
#pragma unroll
        for (int c = 0; c < size; ++c) not_finite += z[c] * Number(0);
        return !(not_finite == Number(0));
      });
    }
    if (again != 0) {
      Registers copy = registers;  // in memory, which is indexed there
      redo_with_care<Op, false, Layout>(copy, again, product, share, bias, kept, kept_h, task_.layout,
                                        task_.layer[i].params);
      registers = copy;
    }
  }

  template <class Op>
  __device__ __forceinline__ void activate_backward(Registers& registers, const Product& product,
                                                    const WarpColumns& share, const Op& op, int i) const {
    const Layout layout(task_.direction_weights, task_.layout.top_share());
    unsigned again = 0;
#pragma unroll
    for (int j = 0; j < tiles; ++j) {
      Number forward[size][4];
      Four<Number> z[size];
#pragma unroll
      for (int c = 0; c < size; ++c) z[c] = kept_h.load(share.first + j, c);
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        Number jet[size], incoming[size], result[size], value[size];
#pragma unroll
        for (int c = 0; c < size; ++c) {
          jet[c] = z[c].v[e];
          incoming[c] = registers.of[c][j][e];
        }
        again |= unsigned(activate_jet_backward(op, layout, jet, incoming, result, value)) << (j * 4 + e);
#pragma unroll
        for (int c = 0; c < size; ++c) {
          registers.of[c][j][e] = result[c];
          forward[c][e] = value[c];
        }
      }
      const bool ragged = (share.first + j + 1) * 8 > share.columns || share.points < points;
#pragma unroll
      for (int c = 0; c < size; ++c) {
        if (ragged) mask(forward[c], share, j, true);
        kept_h.store(share.first + j, c, forward[c]);
      }
    }
    if (again != 0) {
      Registers copy = registers;
      redo_with_care<Op, true, Layout>(copy, again, product, share, static_cast<const Number*>(nullptr), image(i),
                                       kept_h, task_.layout, task_.layer[i].params);
      registers = copy;
    }
  }

  // Zeros where there is no such column, or, if it matters, point.
  __device__ __forceinline__ static void mask(Number (&d)[4], const WarpColumns& share, int j, bool mask_points) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const bool used = (share.first + j) * 8 + M::column(e) < share.columns;
      d[e] = used && (!mask_points || M::row(e) < share.points) ? d[e] : Number(0);
    }
  }
  __device__ __forceinline__ static void store(Registers& registers, const WarpColumns& share, bool mask_points,
                                               const J& to) {
    if ((share.first + tiles) * 8 > share.columns || (mask_points && share.points < points)) {
#pragma unroll
      for (int j = 0; j < tiles; ++j) {
#pragma unroll
        for (int c = 0; c < size; ++c) mask(registers.of[c][j], share, j, mask_points);
      }
    }
#pragma unroll
    for (int j = 0; j < tiles; ++j) {
#pragma unroll
      for (int c = 0; c < size; ++c) to.store(share.first + j, c, registers.of[c][j]);
    }
  }

  // A product to a tensor (C, points, columns).
  __device__ __forceinline__ void copy_out(const Product& product, const Number* bias, int columns,
                                           void* tensor) const {
    const int used = used_points();
    for (int first = warp(); first * 8 < columns; first += blockDim.x / 32) {
      JetRegisters<Number, size, 1> registers;
      multiply(product, registers, first);
      if constexpr (std::is_same_v<Number, float>) {
        Number not_finite(0);
#pragma unroll
        for (int c = 0; c < size; ++c) {
#pragma unroll
          for (int e = 0; e < 4; ++e) not_finite += registers.of[c][0][e] * Number(0);
        }
        if (!(not_finite == Number(0)) && task_.arithmetic == ChainArithmetic::f32) {
          auto copy = registers;
          repair(copy, product, first);
          registers = copy;
        }
      }
      with_storage<Number>(task_.arithmetic, [&](auto scalar) {
        auto* const to = in_global_memory(static_cast<decltype(scalar)*>(tensor));
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const int point = M::row(e), column = first * 8 + M::column(e);
          if (point >= used || column >= columns) continue;
          if (bias != nullptr) registers.of[0][0][e] += in_global_memory(bias)[column];
#pragma unroll
          for (int c = 0; c < size; ++c) {
            narrow(registers.of[c][0][e], to[(c * task_.points + begin() + point) * columns + column]);
          }
        }
      });
    }
  }

  // The same for few columns, without matrix units: each warp sums over some of the columns of h.
  __device__ __forceinline__ void thin_product(const Product& product, const Number* bias, int columns,
                                               void* tensor) const {
    const int row = lane() / 4, t = lane() % 4, warps = blockDim.x / 32;
    Number kept[size][2];  // of column t
#pragma unroll 1
    for (int q = 0; q < columns; ++q) {
      Number sum[size][2];
#pragma unroll
      for (int c = 0; c < size; ++c) sum[c][0] = sum[c][1] = Number(0);
#pragma unroll 1
      for (int eight = warp(); eight * 8 < product.depth; eight += warps) {
        const Number first = product.weight.number(q, eight * 8 + J::column_of_rows(0, t));
        const Number second = product.weight.number(q, eight * 8 + J::column_of_rows(1, t));
#pragma unroll
        for (int c = 0; c < size; ++c) {
          const Four<Number> f = h.rows(eight, c);
          sum[c][0] += f.v[0] * first + f.v[2] * second;
          sum[c][1] += f.v[1] * first + f.v[3] * second;
        }
      }
#pragma unroll
      for (int c = 0; c < size; ++c) {
#pragma unroll
        for (int n = 0; n < 2; ++n) {
          sum[c][n] += shuffled(sum[c][n], 1);
          sum[c][n] += shuffled(sum[c][n], 2);
          if (t == q) kept[c][n] = sum[c][n];
        }
      }
    }
    __syncthreads();
    Number* const sums = h.p;  // of warp, column, coefficient and point
    if (t < columns) {
#pragma unroll
      for (int c = 0; c < size; ++c) {
#pragma unroll
        for (int n = 0; n < 2; ++n) sums[((warp() * columns + t) * size + c) * points + row + 8 * n] = kept[c][n];
      }
    }
    __syncthreads();
    with_storage<Number>(task_.arithmetic, [&](auto scalar) {
      auto* const to = in_global_memory(static_cast<decltype(scalar)*>(tensor));
      const int used = used_points();
      for (int i = threadIdx.x; i < size * points * columns; i += blockDim.x) {
        const int point = i % points, c = i / points % size, q = i / (points * size);
        Number total(0);
        for (int other = 0; other < warps; ++other) total += sums[((other * columns + q) * size + c) * points + point];
        if (bias != nullptr && c == 0) total += in_global_memory(bias)[q];
        if (point < used) narrow(total, to[(c * task_.points + begin() + point) * columns + q]);
      }
    });
  }

  // To the block's sum, which the first tile sets.
  __device__ __forceinline__ void add(Number* to, Number sum) const {
    if (tile_ == blockIdx.x) {
      *to = sum;
    } else {
      add_in_memory(to, sum);
    }
  }

  template <int row_tiles>
  __device__ __forceinline__ void weight_gradient(const CudaChainLayer& layer, Number* to) const {
    const int rows = (layer.in + 16 * row_tiles - 1) / (16 * row_tiles), jobs = rows * ((layer.out + 31) / 32);
    const int all_tiles = task_.packed_columns(layer.out) / 8;
    for (int job = warp(); job < jobs; job += blockDim.x / 32) {
      const int row = job % rows * row_tiles, pair = job / rows * 2;
      WeightSums<Number, row_tiles> sums;
      with_arithmetic<Number>(task_.arithmetic, [&](auto arithmetic) {
        using A = decltype(arithmetic);
        sums.template sum<A>(kept_h, gradient, row, pair);
        if constexpr (A::splits) {
          if (!sums.is_finite()) {
            auto copy = sums;
            repair(copy, kept_h, gradient, row, pair);
            sums = copy;
          }
        }
      });
#pragma unroll
      for (int i = 0; i < row_tiles; ++i) {
        if ((row + i) * 16 >= task_.packed_columns(layer.in)) break;
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          Number* const place = to + ((int64_t(row + i) * all_tiles + 2 * pair + j) * 32 + lane()) * 4;
          Four<Number> f;
#pragma unroll
          for (int e = 0; e < 4; ++e) f.v[e] = sums.of[i][j][e];
          if (tile_ == blockIdx.x) {
            write_four(place, place + 2, f);
          } else {
            add_in_memory(place, f.v);
          }
        }
      }
    }
  }

  // The same where `thin` has few columns: sums of their products with those of `wide`, without matrix units. Number
  // (thin column, wide column) of the sums stands at thin_stride and wide_stride times these.
  template <class Wide, class Thin>
  __device__ __forceinline__ void thin_gradient(const Wide& wide, int wide_columns, const Thin& thin, int thin_columns,
                                                Number* to, int thin_stride, int wide_stride) const {
    const int row = lane() / 4, t = lane() % 4;
#pragma unroll 1
    for (int q = 0; q < thin_columns; ++q) {
      Number upper[size], lower[size];
#pragma unroll
      for (int c = 0; c < size; ++c) {
        upper[c] = thin.p[Thin::place(row, q, c)];
        lower[c] = thin.p[Thin::place(row + 8, q, c)];
      }
#pragma unroll 2
      for (int eight = warp(); eight * 8 < wide_columns; eight += blockDim.x / 32) {
        Number sum[2] = {Number(0), Number(0)};
#pragma unroll
        for (int c = 0; c < size; ++c) {
          const Four<Number> f = wide.rows(eight, c);
          sum[0] += f.v[0] * upper[c] + f.v[1] * lower[c];
          sum[1] += f.v[2] * upper[c] + f.v[3] * lower[c];
        }
#pragma unroll
        for (int n = 0; n < 2; ++n) {
#pragma unroll
          for (int mask = 4; mask < 32; mask *= 2) sum[n] += shuffled(sum[n], mask);
          const int column = eight * 8 + J::column_of_rows(n, t);
          if (row == 0 && column < wide_columns) add(to + q * thin_stride + column * wide_stride, sum[n]);
        }
      }
    }
  }

  const ChainTask& task_;
  int64_t tile_;
};

template <class Number, class Layout>
inline constexpr int most_fixed_threads = 32 * fixed_warps(Layout::size, sizeof(Number));

template <class Number, class Layout>
__global__ void __launch_bounds__((most_fixed_threads<Number, Layout>), 1)
    fixed_chain_forward(const __grid_constant__ ChainTask task) {
  for (FixedTile<Number, Layout> tile(task); tile.exists(); tile.advance()) {
    tile.copy_in(task.x, task.layer[0].in, tile.h);
    __syncthreads();
    for (int i = 0; i < task.layers - 1; ++i) tile.layer(i, task.saved != nullptr);
    tile.last_layer();
    __syncthreads();
  }
}

template <class Number, class Layout>
__global__ void __launch_bounds__((most_fixed_threads<Number, Layout>), 1)
    fixed_chain_backward(const __grid_constant__ ChainTask task) {
  const int last = task.layers - 1, in = task.layer[0].in;
  for (FixedTile<Number, Layout> tile(task); tile.exists(); tile.advance()) {
    tile.copy_in(task.grad, task.layer[last].out, tile.gradient);
    if (task.saved == nullptr) {
      tile.copy_in(task.x, in, tile.h);
      __syncthreads();
      for (int i = 0; i < last; ++i) tile.layer(i, true, i + 1 < last);
    }
    __syncthreads();
    for (int i = last; i > 0; --i) {
      typename FixedTile<Number, Layout>::Registers registers;
      tile.layer_backward(i - 1, registers);
      __syncthreads();
      tile.parameter_gradients(i);
      __syncthreads();
      tile.store_gradient(i - 1, registers);
      __syncthreads();
    }
    tile.copy_in(task.x, in, tile.kept_h);
    __syncthreads();
    tile.parameter_gradients(0);
    if (task.dx != nullptr) tile.input_gradient();
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
