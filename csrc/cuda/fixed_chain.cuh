// The fused chain for layouts that are known when it is compiled. A block has 16 points, and each of its warps some of
// every layer's columns, in all coefficients: a thread holds all coefficients of its numbers in the sums of the matrix
// product, and applies the activation to them there. Shared memory only passes them on to the other warps; float32
// numbers in parts, if there is room for them (split_jets.cuh). A layer's registers are set in every branch, or all in
// one: else the compiler takes them to be in use all the time, and has too few.
#pragma once

#include "chain.cuh"  // first: it says that this is for CUDA

#include "../fixed_layouts.h"
#include "split_jets.cuh"

TD_NAMESPACE_BEGIN

// What a thread holds of a warp's 16 points and 8 * tiles columns.
template <class Number, int size, int tiles>
struct JetRegisters {
  Number of[size][tiles][4];

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int c = 0; c < size; ++c) {
#pragma unroll
      for (int j = 0; j < tiles; ++j) {
#pragma unroll
        for (int e = 0; e < 4; ++e) of[c][j][e] = Number(0);
      }
    }
  }
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

// Jets of so few columns that their products need no matrix unit.
template <class Number, int size>
struct ThinJets {
  static constexpr int points = ChainTiling::fixed_points;
  int first;  // of its numbers in shared memory

  __device__ __forceinline__ Number* shared() const { return static_cast<Number*>(shared_memory()) + first; }
  __device__ static int place(int point, int column, int c) { return (column * size + c) * points + point; }
  __device__ __forceinline__ void set(int place, Number x) const { shared()[place] = x; }
  __device__ __forceinline__ Number number(int point, int column, int c) const {
    return shared()[place(point, column, c)];
  }
};

// A tile's matrix product of jets and a weight, of which `depth` columns are in use: packed in fragments; or, if
// `is_thin`, of thin jets and a row of weights for each of these columns.
template <class J>
struct JetProduct {
  using Number = typename J::Number;
  static constexpr int size = J::size;
  J from;
  ThinJets<Number, size> thin;
  const Number* weight;
  int columns;  // of the packed weight, or of a row
  int depth;
  bool is_thin;

  // Adds the product's 8 * tiles columns from tile `first` on.
  template <int tiles>
  __device__ __forceinline__ void multiply_thin(JetRegisters<Number, size, tiles>& registers, int first) const {
    using M = Mma<Number>;
#pragma unroll 1
    for (int q = 0; q < depth; ++q) {
      Two<Number> w[tiles];
#pragma unroll
      for (int j = 0; j < tiles; ++j) w[j] = thin_weight(q, first + j);
#pragma unroll
      for (int c = 0; c < size; ++c) {
        const Number upper = thin.number(M::row(0), q, c), lower = thin.number(M::row(2), q, c);
#pragma unroll
        for (int j = 0; j < tiles; ++j) {
          registers.of[c][j][0] += upper * w[j].first;
          registers.of[c][j][1] += upper * w[j].second;
          registers.of[c][j][2] += lower * w[j].first;
          registers.of[c][j][3] += lower * w[j].second;
        }
      }
    }
  }
  // Two columns' numbers, those that this thread has of a tile.
  __device__ __forceinline__ Two<Number> thin_weight(int q, int tile) const {
    return *reinterpret_cast<const Two<Number>*>(in_global_memory(weight) + q * columns + tile * 8 +
                                                 Mma<Number>::column(0));
  }

  // The same by matrix units.
  template <class A, int tiles>
  __device__ __forceinline__ void multiply(JetRegisters<Number, size, tiles>& registers, int first) const {
    constexpr int step = eights_of_step<A>, groups_of_eight = 8 / Slot<Number>::group;
    const int eights = (depth + 8 * step - 1) / (8 * step) * step;
    const PackedOperand<Number> packed = this->packed();
    const Slot<Number>* at = packed.place(first * 8, 0);
    const int group = packed.tiles * 32;  // slots from one to the next
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

  // The same of jets in parts; `first` is even. meanwhile() is called while the first weights are on their way.
  template <int tiles, class F>
  __device__ __forceinline__ void multiply_parts(JetRegisters<Number, size, tiles>& registers, int first,
                                                 const F& meanwhile) const {
    // So many coefficients at once that four or six sums don't wait for each other.
    constexpr int at_once = tiles > 2 ? 1 : size % 3 == 0 ? 3 : 2;
    const SplitOperand packed = this->packed();
    const auto* weights = packed.at(first);
    const int words_of_step = packed.words_of_step();
    const int steps = int(unsigned(depth + SplitOperand::step - 1) / SplitOperand::step);
    uint32_t right[tiles][Parts::count][2];
    const auto read = [&] {
#pragma unroll
      for (int j = 0; j < tiles; j += 2) SplitOperand::read(weights + j / 2 * Parts::count * 32, right + j);
      weights += words_of_step;
    };
    read();
    meanwhile();
    const float* rows = from.rows_at(0, 0);
#pragma unroll 1
    for (int n = 0; n < steps; ++n) {
      const auto add = [&](auto coefficients, int c) {
        constexpr int count = decltype(coefficients)::value;
        float (*sums[count])[4];
#pragma unroll
        for (int l = 0; l < count; ++l) sums[l] = registers.of[c + l];
        add_products<false, count, tiles>(sums, [&](int l, int part, uint32_t (&words)[4]) {
          load_matrices(words, rows + (c + l) * J::coefficient_words + part * J::part_words);
        }, [&](int part, uint32_t (&words)[tiles][2]) {
#pragma unroll
          for (int j = 0; j < tiles; ++j) memcpy(words[j], right[j][part], sizeof(words[j]));
        });
      };
#pragma unroll
      for (int c = 0; c + at_once <= size; c += at_once) add(Const<at_once>{}, c);
      if constexpr (size % at_once != 0) add(Const<size % at_once>{}, size / at_once * at_once);
      if (n + 1 < steps) read();
      rows += J::next_columns;
    }
  }
  __device__ __forceinline__ typename J::Weight packed() const {
    if constexpr (J::is_split) {
      return {weight, columns / 8};
    } else {
      return {reinterpret_cast<const Slot<Number>*>(weight), columns / 8};
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
    for (int k = 0; k < depth; ++k) {
      sum += is_thin ? thin.number(point, k, c) * weight[k * columns + column]
                     : from.number(point, k, c) * packed().number(column, k);
    }
    return sum;
  }
};

// Those of the numbers that aren't finite once more, where the arithmetic splits numbers into sums.
template <class J, int tiles>
__device__ __noinline__ void repair(JetRegisters<typename J::Number, J::size, tiles>& registers, JetProduct<J> product,
                                    int first) {
  TD_TRACE;
  using Number = typename J::Number;
  using M = Mma<Number>;
#pragma unroll 1
  for (int n = 0; n < J::size * tiles * 4; ++n) {
    const int c = n / (tiles * 4), j = n / 4 % tiles, e = n % 4;
    Number& number = registers.of[c][j][e];
    if (is_finite(number)) continue;
    number = product.number(M::row(e), (first + j) * 8 + M::column(e), c);
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

// Does jets again, by loops with arithmetic that copes with infinities: those of the set bits of `again`, of as many
// tiles as the registers have, from tile j of the warp's on. In the forward pass the registers receive h, and what is
// kept of z is corrected, unless there is no image. In the backward pass the product is h's gradient; the registers
// receive z's, and `values` h.
template <class Op, bool backward, class Layout, int all_tiles, class J, class Number, int size, int tiles>
__device__ __noinline__ void redo_with_care(JetRegisters<Number, size, tiles>& registers,
                                            JetRegisters<Number, size, tiles>* values, unsigned again,
                                            JetProduct<J> product, WarpColumns share, int j, const Number* bias,
                                            Number* image, const PackedLayout& layout, const CudaParams& params) {
  TD_TRACE;
  using M = Mma<Number>;
  using T = typename Forward<Op>::template Scratch<Number>;
  T memory[scratch_size(highest_chain_order, Op::aux)];
  Number z[size], gradient[size], result[size];
#pragma unroll 1
  for (int n = 0; n < tiles * 4; ++n) {
    if ((again >> n) % 2 == 0) continue;
    const int tile = n / 4, e = n % 4, point = M::row(e), column = (share.first + j + tile) * 8 + M::column(e);
    if (point >= share.points || column >= share.columns) continue;  // will be zeros
#pragma unroll 1
    for (int c = 0; c < size; ++c) {
      gradient[c] = z[c] = product.number(point, column, c);
    }
    if (bias != nullptr) z[0] += bias[column];
    if (image != nullptr) {
#pragma unroll 1
      for (int c = 0; c < size; ++c) {
        Number& kept = image[((c * all_tiles + j + tile) * 32 + lane()) * 4 + place_in_image<Number>(e)];
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
    careful_pass(Forward<Op>(params.values));
    if constexpr (backward) {
#pragma unroll 1
      for (int c = 0; c < size; ++c) values->of[c][tile][e] = result[c];
      careful_pass(Backward<Op>(params.values));
    }
#pragma unroll 1
    for (int c = 0; c < size; ++c) registers.of[c][tile][e] = result[c];
  }
}

// The gradient of a weight, transposed, 16 * row_tiles by 32 of it: sums over points and coefficients.
template <class Number, int row_tiles>
struct WeightSums {
  static constexpr int pairs = 2;
  Number of[row_tiles][2 * pairs][4];

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int i = 0; i < row_tiles; ++i) {
#pragma unroll
      for (int j = 0; j < 2 * pairs; ++j) {
#pragma unroll
        for (int e = 0; e < 4; ++e) of[i][j][e] = Number(0);
      }
    }
  }
  // Of jets in parts.
  template <int size>
  __device__ __forceinline__ void sum_parts(const SplitJets<size>& h, const SplitJets<size>& gradient, int row,
                                            int pair) {
    using J = SplitJets<size>;
    const float *const rows = h.left_columns_at(row, 0), *const columns = gradient.rows_at(pair, 0);
    clear();
#pragma unroll 1
    for (int c = 0; c < size; ++c) {
      float (*sums[row_tiles])[4];
#pragma unroll
      for (int i = 0; i < row_tiles; ++i) sums[i] = of[i];
      const int coefficient = c * J::coefficient_words;
      add_products<true, row_tiles, 2 * pairs>(sums, [&](int i, int part, uint32_t (&words)[4]) {
        load_matrices_transposed(words, rows + i * J::next_columns + coefficient + part * J::part_words);
      }, [&](int part, uint32_t (&words)[2 * pairs][2]) {
#pragma unroll
        for (int j = 0; j < pairs; ++j) {
          J::right_of_columns(columns + j * J::next_columns + coefficient + part * J::part_words, words + 2 * j);
        }
      });
    }
  }
  template <class A, int size>
  __device__ __forceinline__ void sum(const Jets<Number, size, true>& h, const Jets<Number, size>& gradient, int row,
                                      int pair) {
    constexpr int step = eights_of_step<A>;
    clear();
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

template <class H, class J, int row_tiles>
__device__ __noinline__ void repair(WeightSums<typename J::Number, row_tiles>& sums, H h, J gradient, int row,
                                    int pair) {
  TD_TRACE;
  using Number = typename J::Number;
  constexpr int tiles = 2 * WeightSums<Number, row_tiles>::pairs;
#pragma unroll 1
  for (int n = 0; n < row_tiles * tiles * 4; ++n) {
    const int i = n / (tiles * 4), j = n / 4 % tiles, e = n % 4;
    Number& sum = sums.of[i][j][e];
    if (is_finite(sum)) continue;
    int r, column;
    product_of_columns_at<Number, J::is_split>(row + i, 2 * pair + j, e, lane(), r, column);
    sum = Number(0);
#pragma unroll 1
    for (int k = 0; k < J::size * ChainTiling::fixed_points; ++k) {
      const int point = k % ChainTiling::fixed_points, c = k / ChainTiling::fixed_points;
      sum += h.number(point, r, c) * gradient.number(point, column, c);
    }
  }
}

// A tile of 16 points. All methods are for all threads of the block together. If `split`, jets are kept in parts.
template <class Number, class Layout, bool split>
class FixedTile {
  static constexpr int size = Layout::size, tiles = fixed_tiles(size, sizeof(Number)),
                       points = ChainTiling::fixed_points;
  using M = Mma<Number>;
  using J = std::conditional_t<split, SplitJets<size>, Jets<Number, size>>;
  using JForLeft = std::conditional_t<split, SplitJets<size>, Jets<Number, size, true>>;
  using Product = JetProduct<J>;
  using Thin = ThinJets<Number, size>;
  using OfTile = JetRegisters<Number, size, 1>;

 public:
  using Registers = JetRegisters<Number, size, tiles>;
  J h, gradient;    // buffers
  JForLeft kept_h;  // the same as h

  // The block's first tile, and from one to the next.
  __device__ explicit FixedTile(const ChainTask& task)
      : h{int(task.tiling.thin)},
        gradient{h.first + int(task.tiling.buffer)},
        kept_h{h.first},
        task_(task),
        block_(in_global_memory(static_cast<Number*>(task.blocks)) + blockIdx.x * task.block_numbers),
        tile_(blockIdx.x) {
    images_ = task.saved == nullptr ? block_ + task.sums
                                    : in_global_memory(static_cast<Number*>(task.saved)) + tile_ * images_of_tile();
    images_ += warp() * (size * tiles * 128);
    // Whatever a product takes of columns that nothing was written to must be finite.
    const int words = int(task.tiling.shared_bytes / 16);
    for (int n = threadIdx.x; n < words; n += blockDim.x) static_cast<uint4*>(shared_memory())[n] = {0, 0, 0, 0};
    __syncthreads();
  }
  __device__ __forceinline__ bool exists() const { return tile_ < task_.tiles; }
  __device__ __forceinline__ void advance() {
    tile_ += gridDim.x;
    if (task_.saved != nullptr) images_ += gridDim.x * images_of_tile();
  }
  __device__ __forceinline__ bool thin_input() const { return task_.thin_input > 0; }
  __device__ __forceinline__ bool is_thin_input(int i) const { return task_.is_thin_input(i); }
  __device__ __forceinline__ bool is_thin_output(int i) const { return task_.is_thin_output(i); }

  // Starts to read the first layer's input and, in the backward pass, the gradient of the last one's output, if they
  // are thin, for the block's tile that comes after so many. Nobody may read what is there.
  __device__ __forceinline__ void start_to_read(int tiles_later, bool backward) const {
    const int64_t tile = tile_ + tiles_later * int64_t(gridDim.x);
    if (tile < task_.tiles) {
      if (thin_input()) start_to_read_thin(task_.x, task_.thin_input, tile * points, x());
      if (backward && task_.thin_output > 0) start_to_read_thin(task_.grad, task_.thin_output, tile * points, dy());
    }
    close_group_of_copies();
  }
  // Read them if they aren't thin. Nobody may read the buffer.
  template <class To>
  __device__ __forceinline__ void read_input(const To& to) const {
    if (!thin_input()) read(task_.x, task_.layer[0].in, to);
  }
  __device__ __forceinline__ void read_output_gradient() const {
    const int last = task_.layers - 1;
    if (!is_thin_output(last)) read(task_.grad, task_.layer[last].out, gradient);
  }
  // Until all threads have what they started to read.
  __device__ __forceinline__ void wait_for_all() const {
    wait_for_copies<0>();
    __syncthreads();
  }

  // From h to the next layer's h, unless that isn't wanted, and z to the image if `keeping`. If the next layer's output
  // is thin, to that. Ends with a barrier.
  __device__ __forceinline__ void layer(int i, bool keeping, bool activating = true) const {
    const bool output = is_thin_output(i + 1), reads_h = !is_thin_input(i);
    // Barriers in both branches, so that no register seems to be in use all the time because it is in one of them.
    if (takes_part(i)) {
      const CudaChainLayer& layer = task_.layer[i];
      const WarpColumns share = share_of(i);
      Registers registers;
      registers.clear();
      const Product product = forward_product(i);
      const Number* const bias = bias_of(i);
      if (bias != nullptr) {
        const Number* const of_thread = in_global_memory(bias) + share.first * 8 + M::column(0);
#pragma unroll
        for (int j = 0; j < tiles; ++j) {
#pragma unroll
          for (int e = 0; e < 4; ++e) registers.of[0][j][e] = of_thread[j * 8 + e % 2];
        }
      }
      multiply(product, registers, share.first, [] {});
      if (keeping) {
        Number* const to = image(i);
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
      if (!activating) return;
      mask(registers, share, false);
      if (output || reads_h) __syncthreads();
      output ? sum_columns(registers, thin_product(i + 1, h, x())) : store(registers, i, h);
    } else {
      if (!activating) return;
      if (output || reads_h) __syncthreads();
    }
    __syncthreads();
    if (output) write_sums(i, task_.thin_output, bias_of(i + 1), task_.y);
  }

  // y = h weight^T + bias of the last layer, which has no activation, unless that is done. Ends with a barrier.
  __device__ __forceinline__ void last_layer() const {
    const int last = task_.layers - 1;
    if (!is_thin_output(last)) copy_out(forward_product(last), bias_of(last), task_.layer[last].out, task_.y);
    __syncthreads();
  }

  // From the gradient of layer i + 1's z to that of its own, and to h in its buffer, unless the next layer's output is
  // thin. Adds to the sums for the gradients of its bias, of its weight if its input is thin, and of the next layer's
  // weight if the output of that is.
  __device__ __forceinline__ void layer_backward(int i, Registers& registers) const {
    const CudaChainLayer& layer = task_.layer[i];
    const WarpColumns share = share_of(i);
    registers.clear();
    if (!takes_part(i)) return;
    const Product product = backward_product(i);
    multiply(product, registers, share.first, [&] {
      // What was kept of z is on its way during the product, to where the thread will put h.
      const Number* const kept = image(i);
#pragma unroll
      for (int j = 0; j < tiles; ++j) {
        kept_h.template start_to_load<tiles * 128>(share.first + j, kept + (j * 32 + lane()) * 4);
      }
      close_group_of_copies();
    });
    wait_for_copies<0>();
#define TD_CASE(Op)                                                               \
  case Place::Op:                                                                 \
    activate_backward<Op>(registers, product, share, Op(layer.params.values), i); \
    break;
    switch (layer.op) { TD_FIXED_OPS(TD_CASE) }
#undef TD_CASE
    mask(registers, share, true);
    if (layer.bias_gradient != nullptr) {
      Number sums[tiles][2];
#pragma unroll
      for (int j = 0; j < tiles; ++j) {
#pragma unroll
        for (int n = 0; n < 2; ++n) sums[j][n] = registers.of[0][j][n] + registers.of[0][j][2 + n];
      }
      add_over_points(sums, share.first, layer.out, block_ + task_.places[i].bias_sums, 1);
    }
    if (is_thin_input(i) && layer.weight_gradient != nullptr) {
      thin_gradient(x(), task_.thin_input, registers, share.first, layer.out, block_ + task_.places[i].weight_sums, 1,
                    task_.places[i].ins);
    }
  }

  // What layer i left, to a buffer.
  template <class To>
  __device__ __forceinline__ void store(Registers& registers, int i, const To& to) const {
    if (!takes_part(i)) return;
#pragma unroll
    for (int j = 0; j < tiles; ++j) {
      to.store(warp() * tiles + j, [&](int c) -> const Number(&)[4] { return registers.of[c][j]; });
    }
  }

  // Adds to the block's sums for the gradient of layer i's weight, from that of z and h.
  __device__ __forceinline__ void weight_gradient(int i) const {
    constexpr int row_tiles = sizeof(Number) == sizeof(float) ? 2 : 1;
    const CudaChainLayer& layer = task_.layer[i];
    if (layer.weight_gradient == nullptr) return;
    Number* const to = block_ + task_.places[i].weight_sums;
    const int rows = (layer.in + 16 * row_tiles - 1) / (16 * row_tiles), jobs = rows * ((layer.out + 31) / 32);
    const int ins = task_.places[i].ins, all_tiles = task_.places[i].outs / 8;
    for (int job = warp(); job < jobs; job += blockDim.x / 32) {
      const int row = job % rows * row_tiles, pair = job / rows * 2;
      WeightSums<Number, row_tiles> sums;
      const auto repair_sums = [&] {
        if (sums.is_finite()) return;
        auto copy = sums;
        repair(copy, kept_h, gradient, row, pair);
        sums = copy;
      };
      if constexpr (split) {
        sums.sum_parts(kept_h, gradient, row, pair);
        repair_sums();
      } else {
        with_arithmetic<Number>(task_.arithmetic, [&](auto arithmetic) {
          using A = decltype(arithmetic);
          sums.template sum<A>(kept_h, gradient, row, pair);
          if constexpr (A::splits) repair_sums();
        });
      }
#pragma unroll
      for (int i = 0; i < row_tiles; ++i) {
        if ((row + i) * 16 >= ins) break;
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

  // The same of the last layer's bias.
  __device__ __forceinline__ void bias_gradient_of_output() const {
    const int last = task_.layers - 1;
    const CudaChainLayer& layer = task_.layer[last];
    if (layer.bias_gradient == nullptr) return;
    for (int column = threadIdx.x; column < layer.out; column += blockDim.x) {
      Number sum(0);
#pragma unroll
      for (int p = 0; p < points; ++p) {
        sum += is_thin_output(last) ? dy().number(p, column, 0) : gradient.number(p, column, 0);
      }
      add(block_ + task_.places[last].bias_sums + column, sum);
    }
  }

  // The gradient of the first layer's input, from that of its z; if the input is thin, as layer_backward() left it.
  __device__ __forceinline__ void input_gradient() const {
    const CudaChainLayer& layer = task_.layer[0];
    copy_out(product(gradient, task_.places[0].transposed, task_.places[0].ins, layer.out), nullptr, layer.in,
             task_.dx);
  }
  __device__ __forceinline__ void input_gradient(const Registers& registers) const {
    __syncthreads();
    if (takes_part(0)) sum_columns(registers, thin_product(0, h, x()));
    __syncthreads();
    write_sums(0, task_.thin_input, nullptr, task_.dx);
  }

 private:
  __device__ static int warp() { return threadIdx.x / 32; }
  __device__ int64_t begin() const { return tile_ * points; }
  __device__ int used_points() const {
    const int64_t left = task_.points - begin();
    return left < points ? int(left) : points;
  }
  __device__ int64_t images_of_tile() const { return task_.images * task_.image; }
  // This warp's part of what is kept of layer i.
  __device__ Number* image(int i) const { return images_ + i * task_.image; }
  __device__ WarpColumns share_of(int i) const { return {warp() * tiles, task_.layer[i].out, used_points()}; }
  __device__ bool takes_part(int i) const { return warp() * tiles * 8 < covered(task_.layer[i].out); }

  // Where the input and the gradient of the output are if they are thin.
  __device__ __forceinline__ Thin x() const { return {0}; }
  __device__ __forceinline__ Thin dy() const { return {task_.thin_input * (size * points)}; }

  __device__ const Number* packed(int64_t at) const { return static_cast<const Number*>(task_.packed) + at; }
  __device__ __forceinline__ const Number* bias_of(int i) const {
    return task_.layer[i].bias == nullptr ? nullptr : packed(task_.places[i].bias);
  }
  // Of `columns` packed columns.
  __device__ __forceinline__ Product product(const J& from, int64_t weight, int columns, int depth) const {
    return {from, x(), packed(weight), columns, depth, false};
  }
  // That of a layer with thin input or output: its weight has a row for each of these columns.
  __device__ __forceinline__ Product thin_product(int i, const J& instead_of, const Thin& from) const {
    const CudaChainLayer& layer = task_.layer[i];
    const bool input = is_thin_input(i);
    return {instead_of,
            from,
            packed(task_.places[i].weight),
            input ? task_.places[i].outs : task_.places[i].ins,
            input ? layer.in : layer.out,
            true};
  }
  __device__ __forceinline__ Product forward_product(int i) const {
    const CudaChainLayer& layer = task_.layer[i];
    return is_thin_input(i) ? thin_product(i, h, x())
                            : product(h, task_.places[i].weight, task_.places[i].outs, layer.in);
  }
  // The gradient of layer i's h.
  __device__ __forceinline__ Product backward_product(int i) const {
    const CudaChainLayer& next = task_.layer[i + 1];
    return is_thin_output(i + 1) ? thin_product(i + 1, gradient, dy())
                                 : product(gradient, task_.places[i + 1].transposed, task_.places[i + 1].ins, next.out);
  }

  // Calls meanwhile() early.
  template <int some_tiles, class F>
  __device__ __forceinline__ void multiply(const Product& product, JetRegisters<Number, size, some_tiles>& registers,
                                           int first, const F& meanwhile) const {
    if (product.is_thin) {
      meanwhile();
      product.multiply_thin(registers, first);
    } else if constexpr (split) {
      product.multiply_parts(registers, first, meanwhile);
    } else {
      meanwhile();
      with_arithmetic<Number>(task_.arithmetic, [&](auto arithmetic) {
        product.template multiply<decltype(arithmetic)>(registers, first);
      });
    }
  }

  // A tensor (C, points, width), and zeros where there is no such point, and in as many columns as products may take.
  template <class To>
  __device__ __forceinline__ void read(const void* tensor, int width, const To& to) const {
    if (width % ChainTiling::column_step != 0) {
      const int pieces = To::bytes(covered(width)) / 16;
      uint4* const piece = reinterpret_cast<uint4*>(to.shared());
      for (int i = threadIdx.x; i < pieces; i += blockDim.x) piece[i] = {0, 0, 0, 0};
      __syncthreads();
    }
    with_storage<Number>(task_.arithmetic, [&](auto scalar) {
      const auto* const from = in_global_memory(static_cast<const decltype(scalar)*>(tensor));
      const int used = used_points();
      for (int row = warp(); row < size * points; row += blockDim.x / 32) {
        const int c = row / points, point = row % points;
        const auto* const of_row = from + (c * task_.points + begin() + point) * width;
#pragma unroll 2
        for (int column = lane(); column < width; column += 32) {
          to.set(To::place(point, column, c), point < used ? widened(of_row[column]) : Number(0));
        }
      }
    });
  }
  __device__ __forceinline__ void start_to_read_thin(const void* tensor, int width, int64_t begin,
                                                     const Thin& to) const {
    with_storage<Number>(task_.arithmetic, [&](auto scalar) {
      using Scalar = decltype(scalar);
      const auto* const from = in_global_memory(static_cast<const Scalar*>(tensor));
      for (int row = threadIdx.x; row < size * points; row += blockDim.x) {
        const int c = row / points, point = row % points;
        const bool exists = begin + point < task_.points;
        const auto* const of_row = from + (c * task_.points + begin + point) * width;
        for (int column = 0; column < width; ++column) {
          const int place = Thin::place(point, column, c);
          if constexpr (std::is_same_v<Scalar, Number>) {
            if (exists) {
              copy_async<sizeof(Number)>(to.shared() + place, of_row + column);
            } else {
              to.set(place, Number(0));
            }
          } else {
            to.set(place, exists ? widened(of_row[column]) : Number(0));
          }
        }
      }
    });
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
      redo_with_care<Op, false, Layout, tiles>(copy, static_cast<Registers*>(nullptr), again, product, share, 0, bias,
                                               kept, task_.layout, task_.layer[i].params);
      registers = copy;
    }
  }

  template <class Op>
  __device__ __forceinline__ void activate_backward(Registers& registers, const Product& product,
                                                    const WarpColumns& share, const Op& op, int i) const {
    const Layout layout(task_.direction_weights, task_.layout.top_share());
    const bool thin = is_thin_output(i + 1);
#pragma unroll
    for (int j = 0; j < tiles; ++j) {
      OfTile values;
      Four<Number> z[size];
#pragma unroll
      for (int c = 0; c < size; ++c) z[c] = kept_h.load(share.first + j, c);
      if constexpr (split) __syncwarp();  // others' h may stand where this was
      unsigned again = 0;
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        Number jet[size], incoming[size], result[size], value[size];
#pragma unroll
        for (int c = 0; c < size; ++c) {
          jet[c] = z[c].v[e];
          incoming[c] = registers.of[c][j][e];
        }
        again |= unsigned(activate_jet_backward(op, layout, jet, incoming, result, value)) << e;
#pragma unroll
        for (int c = 0; c < size; ++c) {
          registers.of[c][j][e] = result[c];
          values.of[c][0][e] = value[c];
        }
      }
      if (again != 0) {
        OfTile copy, copy_of_values = values;
#pragma unroll
        for (int c = 0; c < size; ++c) {
#pragma unroll
          for (int e = 0; e < 4; ++e) copy.of[c][0][e] = registers.of[c][j][e];
        }
        redo_with_care<Op, true, Layout, tiles>(copy, &copy_of_values, again, product, share, j,
                                                static_cast<const Number*>(nullptr), image(i), task_.layout,
                                                task_.layer[i].params);
        values = copy_of_values;
#pragma unroll
        for (int c = 0; c < size; ++c) {
#pragma unroll
          for (int e = 0; e < 4; ++e) registers.of[c][j][e] = copy.of[c][0][e];
        }
      }
      if ((share.first + j + 1) * 8 > share.columns || share.points < points) {
#pragma unroll
        for (int c = 0; c < size; ++c) mask(values.of[c][0], share, j, true);
      }
      if (!thin) {
        kept_h.store(share.first + j, [&](int c) -> const Number(&)[4] { return values.of[c][0]; });
      } else if (task_.layer[i + 1].weight_gradient != nullptr) {
        thin_gradient(dy(), task_.thin_output, values, share.first + j, share.columns,
                      block_ + task_.places[i + 1].weight_sums, task_.places[i + 1].ins, 1);
      }
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
  __device__ __forceinline__ static void mask(Registers& registers, const WarpColumns& share, bool mask_points) {
    if ((share.first + tiles) * 8 <= share.columns && (!mask_points || share.points == points)) return;
#pragma unroll
    for (int j = 0; j < tiles; ++j) {
#pragma unroll
      for (int c = 0; c < size; ++c) mask(registers.of[c][j], share, j, mask_points);
    }
  }

  // A product to a tensor (C, points, columns).
  __device__ __forceinline__ void copy_out(const Product& product, const Number* bias, int columns,
                                           void* tensor) const {
    constexpr int at_once = split ? 2 : 1;  // tiles
    const int used = used_points();
    for (int first = warp() * at_once; first * 8 < columns; first += blockDim.x / 32 * at_once) {
      JetRegisters<Number, size, at_once> registers;
      registers.clear();
      multiply(product, registers, first, [] {});
      if constexpr (std::is_same_v<Number, float>) {
        Number not_finite(0);
#pragma unroll
        for (int c = 0; c < size; ++c) {
#pragma unroll
          for (int n = 0; n < 4 * at_once; ++n) not_finite += registers.of[c][n / 4][n % 4] * Number(0);
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
        for (int n = 0; n < 4 * at_once; ++n) {
          const int j = n / 4, e = n % 4, point = M::row(e), column = (first + j) * 8 + M::column(e);
          if (point >= used || column >= columns) continue;
          if (bias != nullptr) registers.of[0][j][e] += in_global_memory(bias)[column];
#pragma unroll
          for (int c = 0; c < size; ++c) {
            narrow(registers.of[c][j][e], to[(c * task_.points + begin() + point) * columns + column]);
          }
        }
      });
    }
  }

  // The same for thin columns, of what a layer left in registers: each warp puts sums over its columns where h was,
  // then all threads bring them together.
  __device__ __forceinline__ void sum_columns(const Registers& registers, const Product& weight) const {
    const int row = lane() / 4, t = lane() % 4, columns = weight.depth;
#pragma unroll 1
    for (int q = 0; q < columns; ++q) {
      Number sum[size][2] = {};
#pragma unroll
      for (int j = 0; j < tiles; ++j) {
        const Two<Number> w = weight.thin_weight(q, warp() * tiles + j);
#pragma unroll
        for (int c = 0; c < size; ++c) {
#pragma unroll
          for (int n = 0; n < 2; ++n) {
            sum[c][n] += registers.of[c][j][2 * n] * w.first + registers.of[c][j][2 * n + 1] * w.second;
          }
        }
      }
      // Of the four threads with a point's columns, one half goes on with the upper rows, one with the lower ones.
      Number* const to = h.shared() + (warp() * columns + q) * size * points + row + t % 2 * 8;
#pragma unroll
      for (int c = 0; c < size; ++c) {
        const bool lower = t % 2 != 0;
        Number total = (lower ? sum[c][1] : sum[c][0]) + shuffled(lower ? sum[c][0] : sum[c][1], 1);
        total += shuffled(total, 2);
        if (t < 2) to[c * points] = total;
      }
    }
  }
  __device__ __forceinline__ void write_sums(int of_layer, int columns, const Number* bias, void* tensor) const {
    const Number* const sums = h.shared();  // of warp, column, coefficient and point
    const int warps = (covered(task_.layer[of_layer].out) / 8 + tiles - 1) / tiles;
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
  // Adds sums over all points of what each thread has summed over its own two, for its two columns of each of some
  // tiles from `first` on. Threads share the work: each ends with one of the columns.
  template <int some_tiles>
  __device__ __forceinline__ void add_over_points(Number (&sums)[some_tiles][2], int first, int columns, Number* to,
                                                  int stride) const {
    int index = 0;  // of this thread's column
    int left = 2 * some_tiles;
#pragma unroll
    for (int mask = 4; mask < 32; mask *= 2) {
      const bool upper = (lane() & mask) != 0;
      left /= 2;
      if (left > 0) index = 2 * index + upper;
#pragma unroll
      for (int n = 0; n < left; ++n) {
        Number &a = sums[n / 2][n % 2], &b = sums[(n + left) / 2][(n + left) % 2];
        a = (upper ? b : a) + shuffled(upper ? a : b, mask);
      }
      if (left == 0) sums[0][0] += shuffled(sums[0][0], mask);
    }
    const int column = (first + index / 2) * 8 + M::column(index % 2);
    if (lane() < 8 * some_tiles && column < columns) add(to + column * stride, sums[0][0]);
  }

  // Adds to the sums for the gradient of a weight products of thin columns and some tiles of 8 columns. Number (thin
  // column, other column) stands at thin_stride and stride times these.
  template <int some_tiles>
  __device__ __forceinline__ void thin_gradient(const Thin& thin, int thin_columns,
                                                const JetRegisters<Number, size, some_tiles>& numbers, int first,
                                                int columns, Number* to, int thin_stride, int stride) const {
#pragma unroll 1
    for (int q = 0; q < thin_columns; ++q) {
      Number sums[some_tiles][2] = {};
#pragma unroll
      for (int c = 0; c < size; ++c) {
        const Number upper = thin.number(M::row(0), q, c), lower = thin.number(M::row(2), q, c);
#pragma unroll
        for (int j = 0; j < some_tiles; ++j) {
          const Number(&d)[4] = numbers.of[c][j];
#pragma unroll
          for (int n = 0; n < 2; ++n) sums[j][n] += d[n] * upper + d[2 + n] * lower;
        }
      }
      add_over_points(sums, first, columns, to + q * thin_stride, stride);
    }
  }

  const ChainTask& task_;
  Number* const block_;  // the sums of this block
  Number* images_;       // of this warp
  int64_t tile_;
};

template <class Number, class Layout, bool split>
inline constexpr int most_fixed_threads = 32 * (split ? most_split_warps : fixed_warps(Layout::size, sizeof(Number)));

template <class Number, class Layout, bool split>
__global__ void __launch_bounds__((most_fixed_threads<Number, Layout, split>), 1)
    fixed_chain_forward(const __grid_constant__ ChainTask task) {
  FixedTile<Number, Layout, split> tile(task);
  tile.start_to_read(0, false);
  for (; tile.exists(); tile.advance()) {
    tile.read_input(tile.h);
    tile.wait_for_all();
    for (int i = 0; i < task.layers - 1; ++i) {
      tile.layer(i, task.saved != nullptr);
      if (i == 0) tile.start_to_read(1, false);
    }
    tile.last_layer();
  }
}

template <class Number, class Layout, bool split>
__global__ void __launch_bounds__((most_fixed_threads<Number, Layout, split>), 1)
    fixed_chain_backward(const __grid_constant__ ChainTask task) {
  using Tile = FixedTile<Number, Layout, split>;
  const int last = task.layers - 1;
  Tile tile(task);
  tile.start_to_read(0, true);
  for (; tile.exists(); tile.advance()) {
    tile.read_output_gradient();
    if (task.saved == nullptr) tile.read_input(tile.h);
    tile.wait_for_all();
    if (task.saved == nullptr) {
      for (int i = 0; i < last; ++i) tile.layer(i, true, i + 1 < last);
      __syncthreads();
    }
    tile.bias_gradient_of_output();
    bool reading_next = false;
    for (int i = last - 1; i >= 0; --i) {
      typename Tile::Registers registers;
      tile.layer_backward(i, registers);
      if (!tile.is_thin_output(i + 1)) {
        __syncthreads();
        if (i == 0) {
          tile.start_to_read(1, true);
          reading_next = true;
        }
        tile.weight_gradient(i + 1);
        __syncthreads();
      }
      if (!tile.is_thin_input(i)) {
        tile.store(registers, i, tile.gradient);
        __syncthreads();
      } else if (task.dx != nullptr) {
        tile.input_gradient(registers);
      }
    }
    if (!tile.thin_input()) {
      tile.read_input(tile.kept_h);
      __syncthreads();
      tile.weight_gradient(0);
      if (task.dx != nullptr) tile.input_gradient();
    }
    __syncthreads();
    if (!reading_next) tile.start_to_read(1, true);
  }
}

// Of each of the layouts, by its index; or null, if there is none.
template <class Number, class Layout, bool split, bool backward>
constexpr ChainKernel fixed_kernel() {
  if constexpr (split && !can_split(Layout::size)) {
    return nullptr;
  } else if constexpr (backward) {
    return &fixed_chain_backward<Number, Layout, split>;
  } else {
    return &fixed_chain_forward<Number, Layout, split>;
  }
}
#define TD_KERNEL(...) fixed_kernel<Number, FixedLayout<__VA_ARGS__>, split, backward>(),
template <class Number, bool split, bool backward>
ChainKernel fixed_kernel_of(int layout) {
  static constexpr ChainKernel kernels[] = {TD_FIXED_LAYOUTS(TD_KERNEL)};
  return kernels[layout];
}
#undef TD_KERNEL

TD_NAMESPACE_END
