// A chain linear -> activation -> linear -> ... on one cache-resident tile of points at a time. No PyTorch here.
//
// Fresh large tensors cost more than the arithmetic on them, so nothing of the size of the batch is written but the
// result: a tile's coefficients of one layer, rows (c, point), go through the matrix product and the activation while
// they are in the L2 cache. The backward pass recomputes the tile's layers, or reads what the forward pass saved of
// them (before the activations), then accumulates the weights' gradients over a group of tiles; the groups are summed
// in a fixed order: the result is the same, bit for bit, from run to run. What follows an activation isn't kept: going
// backward through the activation yields it once more.
//
// The input is a jet, x (C, points, in); or a seed: x (points, in), and higher coefficients (C - 1, in) that are the
// same at all points, as the directions of a coordinate are. A seed's higher coefficients pass the first layer once,
// and not once per point.
#pragma once

#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <vector>

#include "kernels.h"

namespace taylorderiv {

// y = activation(x weight^T + bias); the bias belongs to the primal alone.
template <class S>
struct ChainLayer {
  int64_t in, out;
  const S* weight;       // (out, in)
  const S* bias;         // (out), or null
  int op;                // index of the unary op, or -1
  const double* params;  // of the op
};

template <class S>
class Chain {
 public:
  // `higher` is a seed's, or null; `backward` whether it is for a backward pass.
  Chain(std::vector<ChainLayer<S>> layers, const S* higher, const LayoutView& layout, int64_t points, bool backward)
      : layers_(std::move(layers)),
        layout_(layout),
        kernels_(cpu_kernels<S>()),
        gemm_(cpu_gemm<S>()),
        points_(points),
        seeded_(higher != nullptr),
        backward_(backward) {
    for (size_t i = 0; i < layers_.size(); ++i) {
      widest_ = std::max(widest_, stride(layers_[i].out));
      if (i > 0 || !seeded_) widest_ = std::max(widest_, stride(layers_[i].in));
    }
    widest_ = std::max(widest_, columns((stride(layers_[0].in) + size() - 1) / size()));
    // Numbers per point and coefficient of a backward pass: both passes have one tiling.
    const int64_t numbers = input_numbers() / size() + 4 * widest_ + layer_numbers();
    tile_ = tile_bytes() / (numbers * size() * int64_t(sizeof(S)));
    // Rows enough for the matrix products to pay for reading the weights, which of wide layers is from farther away,
    // but tiles enough for the threads.
    const int64_t least = 1 + std::max<int64_t>(95 / size(), std::min(widest_ / 4 / size(), points / 16));
    tile_ = (std::clamp<int64_t>(tile_, std::min<int64_t>(least, 64), 64) - 1) | 1;
    // Tiles of equal size; an odd one, or the coefficients of an element would often compete for few places in the
    // cache.
    if (points > 0) tile_ = ((points + tiles() - 1) / tiles()) | 1;
    pack();
    if (seeded_) pass_first_layer(higher);
  }

  int64_t tiles() const { return (points_ + tile_ - 1) / tile_; }

  // Floating-point operations of one matrix product per layer, and a guess at those of the activations.
  double operations() const {
    double per_row = 0.0;
    for (const auto& layer : layers_) per_row += layer.out * (2.0 * layer.in + (layer.op >= 0 ? 20.0 : 0.0));
    return per_row * double(points_ * size());
  }

  // Numbers of a tile in the layers that are saved.
  int64_t tile_saved() const { return saved_at(saved_end()); }

  // Numbers of memory that a thread needs, and how many gradients there are.
  int64_t workspace() const {
    const int64_t rows = tile_ * size(), layers = backward_ ? 4 * widest_ + layer_numbers() : 2 * widest_;
    return tile_ * input_numbers() + rows * layers + scratch();
  }
  int64_t gradients() const {
    return weight_gradients() + (seeded_ && backward_ ? (size() - 1) * stride(layers_[0].out) : 0);
  }

  // How many tiles at least should share a sum of their gradients. Outside the cache there are few sums: each takes
  // memory, and as long as the products of some rows.
  int64_t tiles_of_sum(int64_t threads) const {
    constexpr int64_t rows = 1500;
    if (gradients() * int64_t(sizeof(S)) < 2 * tile_bytes()) return std::max<int64_t>(tiles() / (32 * threads), 1);
    return std::max(tiles() / (2 * threads), 1 + rows / (tile_ * size()));
  }

  // x, see above -> y (C, points, out of the last layer), for one tile; saves layers for the backward pass unless
  // `saved` is null. `next_saved` is where those of the next tile will be, or null.
  void forward(int64_t tile, const S* x, S* y, S* saved, S* next_saved, S* workspace) const {
    const int64_t begin = tile * tile_, n = std::min(tile_, points_ - begin), room = tile_ * size();
    S* h = workspace;
    S* other = h + room * widest_;
    void* const scratch = other + room * widest_;
    copy_in(x, input_coefficients(), layers_[0].in, begin, n, h);
    for (size_t i = 0; i < layers_.size(); ++i) {
      const bool save = saved != nullptr && is_saved(i);
      S* const z = save ? saved + saved_at(i) : other;
      Soon soon;
      if (save) soon = is_saved(i + 1) ? saved_layer(saved, i + 1) : saved_layer(next_saved, saved_begin());
      linear(i, n, h, z, soon);
      if (layers_[i].op >= 0) {
        activation(i, n, z, h, scratch);
      } else if (z == other) {
        std::swap(h, other);
      } else {
        std::memcpy(h, z, sizeof(S) * n * size() * stride(layers_[i].out));
      }
    }
    copy_out(h, size(), layers_.back().out, begin, n, y);
  }

  // Adds the tile's share of the parameters' gradients to `gradients`; writes the input's, unless dx is null.
  // `saved` is what forward() saved of the tile, `next_saved` of the next one; if null, the layers are recomputed.
  void backward(int64_t tile, const S* grad, const S* x, const S* saved, const S* next_saved, S* dx, S* gradients,
                S* workspace) const {
    const int64_t begin = tile * tile_, n = std::min(tile_, points_ - begin), room = tile_ * size();
    S* next = workspace;
    const auto take = [&](int64_t numbers) {
      S* const here = next;
      next += numbers;
      return here;
    };
    S* g = take(room * widest_);  // the gradient of a layer before its activation
    S* g_input = take(room * widest_);
    S* spare = take(room * widest_);
    S* const h = take(room * widest_);
    S* const input = take(tile_ * input_numbers());
    std::vector<const S*> z(layers_.size());
    for (size_t i = 0; i < saved_end(); ++i) {
      z[i] = saved != nullptr && is_saved(i) ? saved + saved_at(i) : take(room * stride(layers_[i].out));
    }
    void* const scratch = next;
    copy_in(x, input_coefficients(), layers_[0].in, begin, n, input);
    const S* from = input;
    for (size_t i = 0, end = saved == nullptr ? saved_end() : saved_begin(); i < end; ++i) {
      S* const result = const_cast<S*>(z[i]);
      linear(i, n, from, result);
      from = result;
      if (i + 1 == end || layers_[i].op < 0) continue;
      activation(i, n, result, h, scratch);
      from = h;
    }
    copy_in(grad, size(), layers_.back().out, begin, n, g);
    if (layers_.back().op >= 0) {
      activation_backward(layers_.size() - 1, n, g, z.back(), spare, nullptr, scratch);
      std::swap(g, spare);
    }
    S* gradient = gradients + weight_gradients();
    for (size_t i = layers_.size(); i-- > 0;) {
      const auto& layer = layers_[i];
      const int64_t in = stride(layer.in), out = stride(layer.out), used = input_rows(i, n);
      if (i > 0 || dx != nullptr) {
        // What is read next: the layer before; at the end the last one of the next tile.
        const Soon soon = i > saved_begin() ? saved_layer(saved, i - 1) : saved_layer(next_saved, saved_end() - 1);
        multiply_packed(used, layer.in, layer.out, g, packed(i, backward_weight), g_input, 0, nullptr, soon);
      }
      const S* inputs = i > 0 ? z[i - 1] : input;
      if (i > 0 && layers_[i - 1].op >= 0) {
        activation_backward(i - 1, n, g_input, z[i - 1], spare, h, scratch);
        std::swap(g_input, spare);
        inputs = h;
      }
      gradient -= layer.out * in + out;
      const GemmShape shape{layer.out, columns(layer.in), used, 1, out, in, gemm_.panel, in, true, 0};
      gemm_.multiply(shape, g, inputs, gradient, nullptr);
      gemm_.add_rows(n, columns(layer.out), out, g, gradient + layer.out * in);
      if (i == 0 && seeded_) {
        S* const sums = gradients + weight_gradients();
        for (int64_t c = 1; c < size(); ++c) {
          gemm_.add_rows(n, columns(layer.out), out, g + c * n * out, sums + (c - 1) * out);
        }
      }
      std::swap(g, g_input);
    }
    if (dx != nullptr) copy_out(g, input_coefficients(), layers_[0].in, begin, n, dx);
  }

  // Adds gradients from backward() to a sum of them; and the numbers [begin, end) of groups of them, one after the
  // other, to a total that is overwritten.
  void add_gradients(const S* gradients, S* sum) const {
    gemm_.add_rows(1, this->gradients(), this->gradients(), gradients, sum);
  }
  void reduce(int64_t groups, const S* gradients, int64_t begin, int64_t end, S* total) const {
    end = std::min(end, this->gradients());
    std::fill(total + begin, total + end, S(0));
    gemm_.add_rows(groups, end - begin, this->gradients(), gradients + begin, total + begin);
  }

  // Adds to such a total what the weight of a seed's first layer gets from the higher coefficients.
  void add_higher(S* total) const {
    if (!seeded_) return;
    const auto& layer = layers_[0];
    const int64_t in = stride(layer.in), out = stride(layer.out);
    const GemmShape shape{layer.out, columns(layer.in), size() - 1, 1, out, in, gemm_.panel, in, true, 0};
    gemm_.multiply(shape, total + weight_gradients(), higher_input_.data(), total, nullptr);
  }

  // Of such a total: weight (out, in) and bias (out) of a layer, unless it is null.
  void read_layer(size_t layer, const S* total, S* weight, S* bias) const {
    for (size_t i = 0; i < layer; ++i) total += layers_[i].out * stride(layers_[i].in) + stride(layers_[i].out);
    const int64_t in = layers_[layer].in, out = layers_[layer].out, row = stride(in);
    for (int64_t o = 0; o < out; ++o) std::copy_n(total + o * row, in, weight + o * in);
    if (bias != nullptr) std::copy_n(total + out * row, out, bias);
  }

  // And the gradient (C - 1, out) of a seed's higher coefficients as they leave the first layer's weight.
  void read_higher(const S* total, S* gradient) const {
    const int64_t out = layers_[0].out;
    total += weight_gradients();
    for (int64_t c = 0; c + 1 < size(); ++c) std::copy_n(total + c * stride(out), out, gradient + c * out);
  }

 private:
  enum { forward_weight, backward_weight, bias };  // what is packed of a layer
  static constexpr int64_t narrow = 2;             // outputs for which multiply_narrow is faster, as measured

  // Half of the L2 cache, the other half for weights and what is saved.
  static int64_t tile_bytes() {
    static const int64_t bytes = [] {
      const int64_t cache = sysconf(_SC_LEVEL2_CACHE_SIZE);
      return (cache > 0 ? cache : int64_t(1) << 20) / 2;
    }();
    return bytes;
  }

  int64_t size() const { return layout_.size(); }
  // How many coefficients of the input differ from point to point; how many rows of a layer's input, for n points, do;
  // and the input's numbers per point.
  int64_t input_coefficients() const { return seeded_ ? 1 : size(); }
  int64_t input_rows(size_t layer, int64_t n) const { return n * (layer == 0 ? input_coefficients() : size()); }
  int64_t input_numbers() const { return input_coefficients() * stride(layers_[0].in); }
  // Numbers of the gradients of weights and biases.
  int64_t weight_gradients() const {
    int64_t numbers = 0;
    if (backward_) {
      for (const auto& layer : layers_) numbers += layer.out * stride(layer.in) + stride(layer.out);
    }
    return numbers;
  }
  // A row's width in whole vectors.
  int64_t columns(int64_t width) const { return (width + gemm_.lanes - 1) / gemm_.lanes * gemm_.lanes; }
  // From row to row: never a multiple of 8 cache lines, or a column of rows would compete for few places in the cache.
  int64_t stride(int64_t width) const {
    const int64_t line = 64 / sizeof(S), numbers = columns(width);
    return numbers % (8 * line) == 0 ? numbers + line : numbers;
  }
  int64_t scratch() const { return cpu_scratch_bytes(layout_) / int64_t(sizeof(S)); }
  const S* packed(size_t layer, int which) const { return packed_.data() + offsets_[3 * layer + which]; }

  // The backward pass needs what enters the layers' activations, or, without one, the next layer. That is saved, but of
  // the first layer of a seed, which costs next to nothing to compute.
  size_t saved_begin() const { return seeded_ ? 1 : 0; }
  size_t saved_end() const { return layers_.size() - (layers_.back().op < 0); }
  bool is_saved(size_t layer) const { return saved_begin() <= layer && layer < saved_end(); }
  // Where a layer begins in what is saved of a tile.
  int64_t saved_at(size_t layer) const {
    int64_t numbers = 0;
    for (size_t i = saved_begin(); i < layer; ++i) numbers += stride(layers_[i].out);
    return numbers * tile_ * size();
  }
  // Numbers of one coefficient of one point in the layers that are needed.
  int64_t layer_numbers() const {
    int64_t numbers = 0;
    for (size_t i = 0; i < saved_end(); ++i) numbers += stride(layers_[i].out);
    return numbers;
  }

  // Memory to fetch while a product is computed, because it will be read or written soon.
  struct Soon {
    const void* from = nullptr;
    int64_t bytes = 0;
  };
  Soon saved_layer(const S* saved, size_t layer) const {
    if (saved == nullptr || !is_saved(layer)) return {};
    return {saved + saved_at(layer), tile_ * size() * stride(layers_[layer].out) * int64_t(sizeof(S))};
  }

  // Copies of the weights in the panels that the matrix product wants (GemmShape), padded with zeros: transposed for
  // the forward product, as they are for the gradient of the input. And of the bias.
  void pack() {
    int64_t numbers = 0;
    const auto in_panels = [&](int64_t width) { return (width + gemm_.panel - 1) / gemm_.panel * gemm_.panel; };
    for (const auto& layer : layers_) {
      offsets_.push_back(numbers);
      offsets_.push_back(numbers += layer.in * in_panels(layer.out));
      offsets_.push_back(numbers += backward_ ? layer.out * in_panels(layer.in) : 0);
      numbers += in_panels(layer.out);
    }
    packed_.assign(numbers, S(0));
    for (size_t l = 0; l < layers_.size(); ++l) {
      const auto& layer = layers_[l];
      const int64_t panel = gemm_.panel;
      S* const transposed = packed_.data() + offsets_[3 * l];
      S* const rows = packed_.data() + offsets_[3 * l + 1];
      if (layer.bias != nullptr) std::copy_n(layer.bias, layer.out, packed_.data() + offsets_[3 * l + 2]);
      for (int64_t o = 0; o < layer.out; ++o) {
        const S* const row = layer.weight + o * layer.in;
        S* const column = transposed + o / panel * panel * layer.in + o % panel;
        for (int64_t i = 0; i < layer.in; ++i) column[i * panel] = row[i];
        if (!backward_) continue;
        for (int64_t i = 0; i < layer.in; i += panel) {
          std::memcpy(rows + i * layer.out + o * panel, row + i, sizeof(S) * std::min(panel, layer.in - i));
        }
      }
    }
  }

  // c (rows, width) = a (rows, depth) times packed weights, plus a bias in the first rows; what lies behind the width
  // is 0.
  void multiply_packed(int64_t rows, int64_t width, int64_t depth, const S* a, const S* b, S* c, int64_t biased,
                       const S* bias, Soon soon = {}) const {
    const int64_t c_row = stride(width), filled = columns(width), panel = gemm_.panel;
    const GemmShape shape{rows,          filled, depth, stride(depth), 1,         panel,
                          depth * panel, c_row,  false, biased,        soon.from, soon.bytes};
    gemm_.multiply(shape, a, b, c, bias);
    if (c_row == filled) return;
    for (int64_t r = 0; r < rows; ++r) std::fill(c + r * c_row + filled, c + (r + 1) * c_row, S(0));
  }

  void pass_first_layer(const S* higher) {
    const auto& layer = layers_[0];
    const int64_t in = stride(layer.in), out = stride(layer.out), rows = size() - 1;
    higher_input_.assign(rows * in, S(0));
    for (int64_t c = 0; c < rows; ++c) std::memcpy(&higher_input_[c * in], higher + c * layer.in, sizeof(S) * layer.in);
    higher_.assign(rows * out, S(0));
    multiply_packed(rows, layer.out, layer.in, higher_input_.data(), packed(0, forward_weight), higher_.data(), 0,
                    nullptr);
  }

  void linear(size_t i, int64_t n, const S* h, S* z, Soon soon = {}) const {
    const auto& layer = layers_[i];
    const int64_t out = stride(layer.out);
    const int64_t biased = layer.bias == nullptr ? 0 : n;
    if (layer.out <= narrow && layer.in % gemm_.lanes == 0 && gemm_.lanes > 1) {
      gemm_.multiply_narrow({input_rows(i, n), layer.out, layer.in, stride(layer.in), 1, 0, 0, out, false, biased}, h,
                            layer.weight, z, layer.bias);
    } else {
      multiply_packed(input_rows(i, n), layer.out, layer.in, h, packed(i, forward_weight), z, biased, packed(i, bias),
                      soon);
    }
    if (i > 0 || !seeded_) return;
    for (int64_t c = 1; c < size(); ++c) {
      S* const rows = z + c * n * out;
      std::memcpy(rows, higher_.data() + (c - 1) * out, sizeof(S) * out);
      for (int64_t p = 1; p < n; p *= 2) std::memcpy(rows + p * out, rows, sizeof(S) * std::min(p, n - p) * out);
    }
  }

  void activation(size_t i, int64_t n, const S* z, S* h, void* scratch) const {
    const auto& layer = layers_[i];
    kernels_.forward[layer.op](layer.params, layout_, range(n, layer.out), z, h, scratch);
  }

  // The gradient of z from that of h, and h, unless it is null.
  void activation_backward(size_t i, int64_t n, const S* grad, const S* z, S* dz, S* h, void* scratch) const {
    const auto& layer = layers_[i];
    kernels_.backward[layer.op](layer.params, layout_, range(n, layer.out), grad, z, dz, h, scratch);
  }

  // A tile's rows, without what lies between them where that is as much as a cache line.
  Range range(int64_t n, int64_t width) const {
    const int64_t row = stride(width), filled = columns(width);
    return {n * row, 0, n * row, row == filled ? 0 : row, filled};
  }

  // Between (coefficients, points, width) and a tile's rows (c, point).
  void copy_in(const S* from, int64_t coefficients, int64_t width, int64_t begin, int64_t n, S* to) const {
    const int64_t row = stride(width);
    if (row > width) std::memset(to, 0, sizeof(S) * coefficients * n * row);
    for (int64_t c = 0; c < coefficients; ++c) {
      copy_rows(n, width, from + (c * points_ + begin) * width, width, to + c * n * row, row);
    }
  }
  void copy_out(const S* from, int64_t coefficients, int64_t width, int64_t begin, int64_t n, S* to) const {
    const int64_t row = stride(width);
    for (int64_t c = 0; c < coefficients; ++c) {
      copy_rows(n, width, from + c * n * row, row, to + (c * points_ + begin) * width, width);
    }
  }
  static void copy_rows(int64_t n, int64_t width, const S* from, int64_t from_row, S* to, int64_t to_row) {
    if (from_row == to_row) {
      std::memcpy(to, from, sizeof(S) * n * to_row);
    } else if (width < 4) {  // faster than a call for each row
      for (int64_t i = 0; i < width; ++i) {
        for (int64_t p = 0; p < n; ++p) to[p * to_row + i] = from[p * from_row + i];
      }
    } else {
      for (int64_t p = 0; p < n; ++p) std::memcpy(to + p * to_row, from + p * from_row, sizeof(S) * width);
    }
  }

  std::vector<ChainLayer<S>> layers_;
  const LayoutView& layout_;
  const CpuKernels<S>& kernels_;
  const CpuGemm<S>& gemm_;
  int64_t points_, tile_, widest_ = 0;
  bool seeded_, backward_;
  std::vector<int64_t> offsets_;
  std::vector<S> packed_;
  std::vector<S> higher_input_, higher_;  // a seed's higher coefficients in rows, and as they leave the first layer
};

}  // namespace taylorderiv
