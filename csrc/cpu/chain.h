// A chain linear -> activation -> linear -> ... on one cache-resident tile of points at a time. No PyTorch here.
//
// Fresh large tensors cost more than the arithmetic on them, so nothing of the size of the batch is written but the
// result: a tile's coefficients of one layer, rows (c, point), go through the matrix product and the activation while
// they are in the L2 cache. The backward pass recomputes the tile's layers, or reads what the forward pass saved of
// them (before the activations), then accumulates the weights' gradients in buffers of the thread, which are summed in
// a fixed order: the result is the same, bit for bit, from run to run.
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

  Chain(std::vector<ChainLayer<S>> layers, const CpuLayout& layout, int64_t points, Mode mode)
      : layers_(std::move(layers)),
        layout_(layout),
        kernels_(cpu_kernels<S>()),
        gemm_(cpu_gemm<S>()),
        points_(points),
        mode_(mode) {
    for (const auto& layer : layers_) widest_ = std::max({widest_, padded(layer.in), padded(layer.out)});
    int64_t numbers = padded(layers_[0].in) + 2 * widest_;  // per point and coefficient
    if (mode != Mode::forward) numbers += 2 * layer_numbers();
    const int64_t l2_budget = 1 << 20;  // half of the L2 cache of current server processors
    tile_ = l2_budget / (numbers * size() * int64_t(sizeof(S)));
    tile_ = std::clamp<int64_t>(tile_, 4, 64);
    pack();
  }

  int64_t tiles() const { return (points_ + tile_ - 1) / tile_; }

  // Numbers that the saving mode saves.
  int64_t saved() const { return tiles() * tile_ * size() * layer_numbers(); }

  // Numbers of memory that a thread needs, and how many of these, at the front, are its gradients.
  int64_t workspace() const {
    const int64_t rows = tile_ * size();
    int64_t numbers = gradients() + rows * (padded(layers_[0].in) + 2 * widest_) + scratch();
    if (mode_ == Mode::backward) numbers += 2 * rows * layer_numbers();
    return numbers;
  }
  int64_t gradients() const {
    int64_t numbers = 0;
    if (mode_ == Mode::backward) {
      for (const auto& layer : layers_) numbers += layer.out * padded(layer.in) + padded(layer.out);
    }
    return numbers;
  }

  // x (C, points, in of the first layer) -> y (C, points, out of the last one), for one tile; saves for the backward
  // pass, unless `saved` is null.
  void forward(int64_t tile, const S* x, S* y, S* saved, S* workspace) const {
    const int64_t begin = tile * tile_, n = std::min(tile_, points_ - begin), rows = n * size(), room = tile_ * size();
    S* h = workspace;
    S* other = h + room * widest_;
    void* const scratch = other + room * widest_;
    S* next = saved == nullptr ? nullptr : saved + tile * room * layer_numbers();
    copy_in(x, layers_[0].in, begin, n, h);
    for (size_t i = 0; i < layers_.size(); ++i) {
      S* const z = next == nullptr ? other : next;
      linear(i, rows, n, h, z);
      if (next != nullptr) next += room * padded(layers_[i].out);
      if (layers_[i].op >= 0) {
        activation(i, n, z, h, scratch);
      } else if (z == other) {
        std::swap(h, other);
      } else {
        std::memcpy(h, z, sizeof(S) * rows * padded(layers_[i].out));
      }
    }
    copy_out(h, layers_.back().out, begin, n, y);
  }

  // Adds the tile's share of the parameters' gradients to the workspace; writes the input's, unless dx is null.
  // `saved` is what forward() saved, or null.
  void backward(int64_t tile, const S* grad, const S* x, const S* saved, S* dx, S* workspace) const {
    const int64_t begin = tile * tile_, n = std::min(tile_, points_ - begin), rows = n * size(), room = tile_ * size();
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
    S* const input = take(room * padded(layers_[0].in));
    copy_in(x, layers_[0].in, begin, n, input);
    h[0] = input;
    if (saved != nullptr) saved += tile * room * layer_numbers();
    for (size_t i = 0; i < layers_.size(); ++i) {
      const int64_t numbers = room * padded(layers_[i].out);
      if (saved != nullptr) {
        z[i] = saved;
        saved += numbers;
      } else {
        S* const result = take(numbers);
        linear(i, rows, n, h[i], result);
        z[i] = result;
      }
      h[i + 1] = z[i];
      if (i + 1 < layers_.size() && layers_[i].op >= 0) {
        S* const result = take(numbers);
        activation(i, n, z[i], result, scratch);
        h[i + 1] = result;
      }
    }
    copy_in(grad, layers_.back().out, begin, n, g);
    S* gradient = workspace + gradients();
    for (size_t i = layers_.size(); i-- > 0;) {
      const auto& layer = layers_[i];
      const int64_t in = padded(layer.in), out = padded(layer.out);
      if (layer.op >= 0) {
        kernels_.backward[layer.op](layer.params, layout_, Range{n * out, 0, n * out}, g, z[i], g_other, scratch);
        std::swap(g, g_other);
      }
      gradient -= layer.out * in + out;
      gemm_.multiply({layer.out, in, rows, 1, out, in, gemm_.panel, in, true}, g, h[i], gradient);
      S* const bias = gradient + layer.out * in;
      for (int64_t p = 0; p < n; ++p) {
        for (int64_t o = 0; o < out; ++o) bias[o] += g[p * out + o];
      }
      if (i > 0 || dx != nullptr) {
        multiply_packed(rows, in, layer.out, out, g, packed(i, Mode::backward), g_other);
        std::swap(g, g_other);
      }
    }
    if (dx != nullptr) copy_out(g, layers_[0].in, begin, n, dx);
  }

  // The sum over threads of what backward() left in their workspaces: weight (out, in) and bias (out) of a layer.
  void reduce(size_t layer, const std::vector<S*>& workspaces, S* weight, S* bias) const {
    int64_t offset = 0;
    for (size_t i = 0; i < layer; ++i) offset += layers_[i].out * padded(layers_[i].in) + padded(layers_[i].out);
    const int64_t in = layers_[layer].in, out = layers_[layer].out, stride = padded(in);
    for (int64_t o = 0; o < out; ++o) {
      for (int64_t i = 0; i < in; ++i) {
        S sum = 0;
        for (const S* w : workspaces) sum += w[offset + o * stride + i];
        weight[o * in + i] = sum;
      }
      if (bias == nullptr) continue;
      S sum = 0;
      for (const S* w : workspaces) sum += w[offset + out * stride + o];
      bias[o] = sum;
    }
  }

 private:
  int64_t size() const { return layout_.size(); }
  int64_t padded(int64_t width) const { return (width + gemm_.lanes - 1) / gemm_.lanes * gemm_.lanes; }
  int64_t scratch() const { return cpu_scratch_bytes(layout_) / int64_t(sizeof(S)); }
  const S* packed(size_t layer, Mode mode) const {
    return packed_.data() + offsets_[2 * layer + (mode == Mode::backward ? 1 : 0)];
  }

  // Numbers of one coefficient of one point in all layers.
  int64_t layer_numbers() const {
    int64_t numbers = 0;
    for (const auto& layer : layers_) numbers += padded(layer.out);
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
      const auto place = [&](int64_t row, int64_t column, int64_t rows) {
        return (column / gemm_.panel * rows + row) * gemm_.panel + column % gemm_.panel;
      };
      S* const transposed = packed_.data() + offsets_[2 * l];
      S* const rows = packed_.data() + offsets_[2 * l + 1];
      for (int64_t o = 0; o < layer.out; ++o) {
        for (int64_t i = 0; i < layer.in; ++i) {
          const S w = layer.weight[o * layer.in + i];
          transposed[place(i, o, layer.in)] = w;
          if (mode_ == Mode::backward) rows[place(o, i, layer.out)] = w;
        }
      }
    }
  }

  // c (rows, columns) = a (rows, depth; a_row apart) times packed weights.
  void multiply_packed(int64_t rows, int64_t columns, int64_t depth, int64_t a_row, const S* a, const S* b,
                       S* c) const {
    gemm_.multiply({rows, columns, depth, a_row, 1, gemm_.panel, depth * gemm_.panel, columns, false}, a, b, c);
  }

  void linear(size_t i, int64_t rows, int64_t n, const S* h, S* z) const {
    const auto& layer = layers_[i];
    const int64_t in = padded(layer.in), out = padded(layer.out);
    multiply_packed(rows, out, layer.in, in, h, packed(i, Mode::forward), z);
    if (layer.bias == nullptr) return;
    for (int64_t p = 0; p < n; ++p) {
      for (int64_t o = 0; o < layer.out; ++o) z[p * out + o] += layer.bias[o];
    }
  }

  void activation(size_t i, int64_t n, const S* z, S* h, void* scratch) const {
    const int64_t elements = n * padded(layers_[i].out);
    kernels_.forward[layers_[i].op](layers_[i].params, layout_, Range{elements, 0, elements}, z, h, scratch);
  }

  // Between (C, points, width) and a tile's rows (c, point) of padded width.
  void copy_in(const S* from, int64_t width, int64_t begin, int64_t n, S* to) const {
    for (int64_t c = 0; c < size(); ++c) {
      for (int64_t p = 0; p < n; ++p) {
        S* const row = to + (c * n + p) * padded(width);
        std::memcpy(row, from + (c * points_ + begin + p) * width, sizeof(S) * width);
        std::fill(row + width, row + padded(width), S(0));
      }
    }
  }
  void copy_out(const S* from, int64_t width, int64_t begin, int64_t n, S* to) const {
    for (int64_t c = 0; c < size(); ++c) {
      for (int64_t p = 0; p < n; ++p) {
        std::memcpy(to + (c * points_ + begin + p) * width, from + (c * n + p) * padded(width), sizeof(S) * width);
      }
    }
  }

  std::vector<ChainLayer<S>> layers_;
  const CpuLayout& layout_;
  const CpuKernels<S>& kernels_;
  const CpuGemm<S>& gemm_;
  int64_t points_, tile_, widest_ = 0;
  Mode mode_;
  std::vector<int64_t> offsets_;
  std::vector<S> packed_;
};

}  // namespace taylorderiv
