// A chain linear -> activation -> linear -> ... on one cache-resident tile of points at a time. No PyTorch here.
//
// Fresh large tensors cost more than the arithmetic on them, so nothing of the size of the batch is written but the
// result: a tile's coefficients of one layer, rows (c, point), go through the matrix product and the activation while
// they are in the L2 cache. The backward pass recomputes the tile's layers, or reads what the forward pass saved of
// them (before the activations), then accumulates the weights' gradients in buffers of the thread, which are summed in
// a fixed order: the result is the same, bit for bit, from run to run.
//
// The input is a jet, x (C, points, in); or a seed: x (points, in), and higher coefficients (C - 1, in) that are the
// same at all points, as the directions of a coordinate are. A seed's higher coefficients pass the first layer once,
// and not once per point.
#pragma once

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
  // Whether a backward pass is run, or prepared by saving.
  enum class Mode { forward, saving, backward };

  // `higher` is a seed's, or null.
  Chain(std::vector<ChainLayer<S>> layers, const S* higher, const LayoutView& layout, int64_t points, Mode mode)
      : layers_(std::move(layers)),
        layout_(layout),
        kernels_(cpu_kernels<S>()),
        gemm_(cpu_gemm<S>()),
        points_(points),
        seeded_(higher != nullptr),
        mode_(mode) {
    for (size_t i = 0; i < layers_.size(); ++i) {
      widest_ = std::max(widest_, stride(layers_[i].out));
      if (i > 0 || !seeded_) widest_ = std::max(widest_, stride(layers_[i].in));
    }
    widest_ = std::max(widest_, columns((stride(layers_[0].in) + size() - 1) / size()));
    int64_t numbers = input_numbers() / size() + 2 * widest_;  // per point and coefficient
    if (mode != Mode::forward) numbers += 2 * layer_numbers();
    const int64_t l2_budget = 1 << 20;  // half of the L2 cache of current server processors
    tile_ = l2_budget / (numbers * size() * int64_t(sizeof(S)));
    const int64_t least = 1 + 255 / size();  // rows enough for the matrix products to pay for reading the weights
    tile_ = std::clamp<int64_t>(tile_, std::min<int64_t>(least, 64), 64);
    pack();
    if (seeded_) pass_first_layer(higher);
  }

  int64_t tiles() const { return (points_ + tile_ - 1) / tile_; }

  // Numbers that the saving mode saves.
  int64_t saved() const { return tiles() * tile_ * size() * layer_numbers(); }

  // Numbers of memory that a thread needs, and how many of these, at the front, are its gradients.
  int64_t workspace() const {
    const int64_t rows = tile_ * size();
    int64_t numbers = gradients() + tile_ * input_numbers() + rows * 2 * widest_ + scratch();
    if (mode_ == Mode::backward) numbers += 2 * rows * layer_numbers();
    return numbers;
  }
  int64_t gradients() const {
    const bool sums = seeded_ && mode_ == Mode::backward;
    return weight_gradients() + (sums ? (size() - 1) * stride(layers_[0].out) : 0);
  }

  // x, see above -> y (C, points, out of the last layer), for one tile; saves for the backward pass, unless `saved` is
  // null.
  void forward(int64_t tile, const S* x, S* y, S* saved, S* workspace) const {
    const int64_t begin = tile * tile_, n = std::min(tile_, points_ - begin), rows = n * size(), room = tile_ * size();
    S* h = workspace;
    S* other = h + room * widest_;
    void* const scratch = other + room * widest_;
    S* next = saved == nullptr ? nullptr : saved + tile * room * layer_numbers();
    copy_in(x, input_coefficients(), layers_[0].in, begin, n, h);
    for (size_t i = 0; i < layers_.size(); ++i) {
      S* const z = next == nullptr ? other : next;
      linear(i, n, h, z);
      if (next != nullptr) next += room * stride(layers_[i].out);
      if (layers_[i].op >= 0) {
        activation(i, n, z, h, scratch);
      } else if (z == other) {
        std::swap(h, other);
      } else {
        std::memcpy(h, z, sizeof(S) * rows * stride(layers_[i].out));
      }
    }
    copy_out(h, size(), layers_.back().out, begin, n, y);
  }

  // Adds the tile's share of the parameters' gradients to the workspace; writes the input's, unless dx is null.
  // `saved` is what forward() saved, or null.
  void backward(int64_t tile, const S* grad, const S* x, const S* saved, S* dx, S* workspace) const {
    const int64_t begin = tile * tile_, n = std::min(tile_, points_ - begin), room = tile_ * size();
    S* next = workspace + gradients();
    const auto take = [&](int64_t numbers) {
      S* const here = next;
      next += numbers;
      return here;
    };
    S* g = take(room * widest_);
    S* g_other = take(room * widest_);
    void* const scratch = take(this->scratch());
    std::vector<const S*> h(layers_.size() + 1), z(layers_.size());
    S* const input = take(tile_ * input_numbers());
    copy_in(x, input_coefficients(), layers_[0].in, begin, n, input);
    h[0] = input;
    if (saved != nullptr) saved += tile * room * layer_numbers();
    for (size_t i = 0; i < layers_.size(); ++i) {
      const int64_t numbers = room * stride(layers_[i].out);
      if (saved != nullptr) {
        z[i] = saved;
        saved += numbers;
      } else {
        S* const result = take(numbers);
        linear(i, n, h[i], result);
        z[i] = result;
      }
      h[i + 1] = z[i];
      if (i + 1 < layers_.size() && layers_[i].op >= 0) {
        S* const result = take(numbers);
        activation(i, n, z[i], result, scratch);
        h[i + 1] = result;
      }
    }
    copy_in(grad, size(), layers_.back().out, begin, n, g);
    S* gradient = workspace + weight_gradients();
    for (size_t i = layers_.size(); i-- > 0;) {
      const auto& layer = layers_[i];
      const int64_t in = stride(layer.in), out = stride(layer.out);
      if (layer.op >= 0) {
        kernels_.backward[layer.op](layer.params, layout_, Range{n * out, 0, n * out}, g, z[i], g_other, scratch);
        std::swap(g, g_other);
      }
      gradient -= layer.out * in + out;
      const int64_t used = input_rows(i, n);
      gemm_.multiply({layer.out, columns(layer.in), used, 1, out, in, gemm_.panel, in, true}, g, h[i], gradient);
      add_points(g, n, out, g_other, gradient + layer.out * in);
      if (i == 0 && seeded_) {
        S* const sums = workspace + weight_gradients();
        for (int64_t c = 1; c < size(); ++c) add_points(g + c * n * out, n, out, g_other, sums + (c - 1) * out);
      }
      if (i > 0 || dx != nullptr) {
        multiply_packed(used, layer.in, layer.out, g, packed(i, Mode::backward), g_other);
        std::swap(g, g_other);
      }
    }
    if (dx != nullptr) copy_out(g, input_coefficients(), layers_[0].in, begin, n, dx);
  }

  // The sum over threads of what backward() left in their workspaces: weight (out, in) and bias (out) of a layer.
  void reduce(size_t layer, const std::vector<S*>& workspaces, S* weight, S* bias) const {
    int64_t offset = 0;
    for (size_t i = 0; i < layer; ++i) offset += layers_[i].out * stride(layers_[i].in) + stride(layers_[i].out);
    const int64_t in = layers_[layer].in, out = layers_[layer].out, row = stride(in);
    for (size_t t = 0; t < workspaces.size(); ++t) {
      const S* const sums = workspaces[t] + offset;
      for (int64_t o = 0; o < out; ++o) add(sums + o * row, in, t == 0, weight + o * in);
      if (bias != nullptr) add(sums + out * row, out, t == 0, bias);
    }
  }

  // The same for a seed: the gradient (C - 1, out) of its higher coefficients as they leave the first layer's weight.
  void reduce_higher(const std::vector<S*>& workspaces, S* gradient) const {
    const int64_t out = layers_[0].out;
    for (size_t t = 0; t < workspaces.size(); ++t) {
      const S* const sums = workspaces[t] + weight_gradients();
      for (int64_t c = 0; c + 1 < size(); ++c) add(sums + c * stride(out), out, t == 0, gradient + c * out);
    }
  }

 private:
  // Adds the sum of n rows. That is summed in `sum` first: one long sum over all points would lose digits.
  static void add_points(const S* rows, int64_t n, int64_t width, S* sum, S* to) {
    std::fill_n(sum, width, S(0));
    for (int64_t p = 0; p < n; ++p) add(rows + p * width, width, false, sum);
    add(sum, width, false, to);
  }

  static void add(const S* from, int64_t count, bool first, S* to) {
    for (int64_t i = 0; i < count; ++i) to[i] = first ? from[i] : to[i] + from[i];
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
    if (mode_ == Mode::backward) {
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
  const S* packed(size_t layer, Mode mode) const {
    return packed_.data() + offsets_[2 * layer + (mode == Mode::backward ? 1 : 0)];
  }

  // Numbers of one coefficient of one point in all layers.
  int64_t layer_numbers() const {
    int64_t numbers = 0;
    for (const auto& layer : layers_) numbers += stride(layer.out);
    return numbers;
  }

  // Copies of the weights in the panels that the matrix product wants (GemmShape), padded with zeros: transposed for
  // the forward product, as they are for the gradient of the input.
  void pack() {
    int64_t numbers = 0;
    const auto in_panels = [&](int64_t width) { return (width + gemm_.panel - 1) / gemm_.panel * gemm_.panel; };
    for (const auto& layer : layers_) {
      offsets_.push_back(numbers);
      offsets_.push_back(numbers += layer.in * in_panels(layer.out));
      if (mode_ == Mode::backward) numbers += layer.out * in_panels(layer.in);
    }
    packed_.assign(numbers, S(0));
    for (size_t l = 0; l < layers_.size(); ++l) {
      const auto& layer = layers_[l];
      const int64_t panel = gemm_.panel;
      S* const transposed = packed_.data() + offsets_[2 * l];
      S* const rows = packed_.data() + offsets_[2 * l + 1];
      for (int64_t o = 0; o < layer.out; ++o) {
        const S* const row = layer.weight + o * layer.in;
        S* const column = transposed + o / panel * panel * layer.in + o % panel;
        for (int64_t i = 0; i < layer.in; ++i) column[i * panel] = row[i];
        if (mode_ != Mode::backward) continue;
        for (int64_t i = 0; i < layer.in; i += panel) {
          std::memcpy(rows + i * layer.out + o * panel, row + i, sizeof(S) * std::min(panel, layer.in - i));
        }
      }
    }
  }

  // c (rows, width) = a (rows, depth) times packed weights; what lies behind the width is 0.
  void multiply_packed(int64_t rows, int64_t width, int64_t depth, const S* a, const S* b, S* c) const {
    const int64_t c_row = stride(width), filled = columns(width);
    gemm_.multiply({rows, filled, depth, stride(depth), 1, gemm_.panel, depth * gemm_.panel, c_row, false}, a, b, c);
    if (c_row == filled) return;
    for (int64_t r = 0; r < rows; ++r) std::fill(c + r * c_row + filled, c + (r + 1) * c_row, S(0));
  }

  void pass_first_layer(const S* higher) {
    const auto& layer = layers_[0];
    const int64_t in = stride(layer.in), out = stride(layer.out), rows = size() - 1;
    std::vector<S> input(rows * in, S(0));
    for (int64_t c = 0; c < rows; ++c) std::memcpy(&input[c * in], higher + c * layer.in, sizeof(S) * layer.in);
    higher_.assign(rows * out, S(0));
    multiply_packed(rows, layer.out, layer.in, input.data(), packed(0, Mode::forward), higher_.data());
  }

  void linear(size_t i, int64_t n, const S* h, S* z) const {
    const auto& layer = layers_[i];
    const int64_t out = stride(layer.out);
    multiply_packed(input_rows(i, n), layer.out, layer.in, h, packed(i, Mode::forward), z);
    if (i == 0 && seeded_) {
      for (int64_t c = 1; c < size(); ++c) {
        for (int64_t p = 0; p < n; ++p) {
          std::memcpy(z + (c * n + p) * out, higher_.data() + (c - 1) * out, sizeof(S) * out);
        }
      }
    }
    if (layer.bias == nullptr) return;
    for (int64_t p = 0; p < n; ++p) {
      for (int64_t o = 0; o < layer.out; ++o) z[p * out + o] += layer.bias[o];
    }
  }

  void activation(size_t i, int64_t n, const S* z, S* h, void* scratch) const {
    const int64_t elements = n * stride(layers_[i].out);
    kernels_.forward[layers_[i].op](layers_[i].params, layout_, Range{elements, 0, elements}, z, h, scratch);
  }

  // Between (coefficients, points, width) and a tile's rows (c, point).
  void copy_in(const S* from, int64_t coefficients, int64_t width, int64_t begin, int64_t n, S* to) const {
    for (int64_t c = 0; c < coefficients; ++c) {
      for (int64_t p = 0; p < n; ++p) {
        S* const row = to + (c * n + p) * stride(width);
        std::memcpy(row, from + (c * points_ + begin + p) * width, sizeof(S) * width);
        std::fill(row + width, row + stride(width), S(0));
      }
    }
  }
  void copy_out(const S* from, int64_t coefficients, int64_t width, int64_t begin, int64_t n, S* to) const {
    for (int64_t c = 0; c < coefficients; ++c) {
      for (int64_t p = 0; p < n; ++p) {
        std::memcpy(to + (c * points_ + begin + p) * width, from + (c * n + p) * stride(width), sizeof(S) * width);
      }
    }
  }

  std::vector<ChainLayer<S>> layers_;
  const LayoutView& layout_;
  const CpuKernels<S>& kernels_;
  const CpuGemm<S>& gemm_;
  int64_t points_, tile_, widest_ = 0;
  bool seeded_;
  Mode mode_;
  std::vector<int64_t> offsets_;
  std::vector<S> packed_, higher_;
};

}  // namespace taylorderiv
