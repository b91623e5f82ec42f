// The schemas of the fused chain's ops, and the checks of their arguments. PyTorch's stable ABI only.
#pragma once

#include "arguments.h"

namespace taylorderiv {

inline void define_chain_ops(torch::stable::detail::StableLibrary& m) {
  m.def(
      "chain(Tensor x, Tensor higher, Tensor[] weights, Tensor[] biases, str[] ops, float[] params, int[] orders,"
      " float[] collapse, int save, bool tf32) -> (Tensor, Tensor[])");
  m.def(
      "chain_backward(Tensor grad, Tensor x, Tensor higher, Tensor[] saved, Tensor[] weights, Tensor[] biases,"
      " str[] ops, float[] params, int[] orders, float[] collapse, bool input_gradient, bool tf32) -> Tensor[]");
}

// The arguments that describe a chain: an empty op is no activation, an empty bias no bias. Where `higher` isn't empty,
// x are the points (1, N, in) of a seed.
struct ChainArguments {
  Tensor x, higher;
  std::vector<Tensor> weights, biases;
  std::vector<std::string> ops;
  std::vector<double> params;
  CheckedLayout layout;

  // y = op(x weight^T + bias), with no bias if `bias` is null and no op if it is -1.
  struct Layer {
    int64_t in, out;
    const Tensor *weight, *bias;
    int op;
    const double* params;
    int param_count;
  };

  bool seeded() const { return higher.numel() > 0; }
  int64_t points() const { return x.size(1); }

  // The layers, which fit each other and x.
  std::vector<Layer> layers() const {
    const int64_t size = layout.view.size(), rows = seeded() ? 1 : size;
    TD_CHECK(x.dim() == 3 && x.size(0) == rows && x.size(2) > 0 && x.is_contiguous(),
             "x of a chain must be contiguous, (", rows, ", N, in)");
    TD_CHECK(!seeded() || (higher.numel() == (size - 1) * x.size(2) && higher.is_contiguous() &&
                           higher.scalar_type() == x.scalar_type() && higher.device() == x.device()),
             "the higher coefficients of a seed must be contiguous, (", size - 1, ", ", x.size(2),
             "), with the dtype and device of x");
    TD_CHECK(!weights.empty() && biases.size() == weights.size() && ops.size() == weights.size(),
             "a chain needs as many biases and ops as weights, got ", biases.size(), ", ", ops.size(), " and ",
             weights.size());
    std::vector<Layer> layers;
    int64_t width = x.size(2);
    size_t used = 0;
    for (size_t i = 0; i < weights.size(); ++i) {
      const Tensor &w = weights[i], &b = biases[i];
      TD_CHECK(w.dim() == 2 && w.size(1) == width, "weight ", i, " of a chain must be (out, ", width, ")");
      TD_CHECK(b.numel() == 0 || b.numel() == w.size(0), "bias ", i, " of a chain must have ", w.size(0),
               " elements, got ", b.numel());
      for (const Tensor& t : {w, b}) {
        TD_CHECK(t.is_contiguous() && t.scalar_type() == x.scalar_type() && t.device() == x.device(),
                 "weights and biases of a chain must be contiguous, with the dtype and device of x");
      }
      int op = -1, count = 0;
      if (!ops[i].empty()) {
        op = unary_op_index(ops[i]);
        count = unary_op_infos[op].params;
        TD_CHECK(used + count <= params.size(), "too few params for the ops of a chain");
      }
      layers.push_back({width, w.size(0), &w, b.numel() ? &b : nullptr, op, params.data() + used, count});
      used += count;
      width = w.size(0);
    }
    return layers;
  }
};

}  // namespace taylorderiv
