// The ops `chain` and `chain_backward` on the CPU: threads over tiles of points.
#include "../arguments.h"
#include "chain.h"

#include <cstdlib>
#include <memory>

namespace taylorderiv {

template <>
const CpuGemm<float>& cpu_gemm<float>() {
#ifdef TD_X86
  if (best_instruction_set() == InstructionSet::avx512) return gemm_avx512_f32;
  if (best_instruction_set() == InstructionSet::avx2) return gemm_avx2_f32;
#endif
  return gemm_baseline_f32;
}

template <>
const CpuGemm<double>& cpu_gemm<double>() {
#ifdef TD_X86
  if (best_instruction_set() == InstructionSet::avx512) return gemm_avx512_f64;
  if (best_instruction_set() == InstructionSet::avx2) return gemm_avx2_f64;
#endif
  return gemm_baseline_f64;
}

namespace {

using Tensors = std::vector<Tensor>;

// The arguments that describe a chain: an empty op is no activation, an empty bias no bias. Where `higher` isn't empty,
// x are the points (1, N, in) of a seed.
struct Description {
  Tensor x, higher;
  Tensors weights, biases;
  std::vector<std::string> ops;
  std::vector<double> params;
  CheckedLayout layout;

  bool seeded() const { return higher.numel() > 0; }
  int64_t points() const { return x.size(1); }
  template <class S>
  const S* higher_data() const {
    return seeded() ? higher.const_data_ptr<S>() : nullptr;
  }

  template <class S>
  std::vector<ChainLayer<S>> layers() const {
    const int64_t coefficients = layout.view.size();
    STD_TORCH_CHECK(x.dim() == 3 && x.size(0) == (seeded() ? 1 : coefficients) && x.size(2) > 0 && x.is_contiguous(),
                    "taylorderiv: x of a chain must be contiguous, (", seeded() ? 1 : coefficients, ", N, in)");
    STD_TORCH_CHECK(!seeded() || (higher.numel() == (coefficients - 1) * x.size(2) && higher.is_contiguous() &&
                                  higher.scalar_type() == x.scalar_type() && higher.device() == x.device()),
                    "taylorderiv: the higher coefficients of a seed must be contiguous, (", coefficients - 1, ", ",
                    x.size(2), "), with the dtype and device of x");
    STD_TORCH_CHECK(!weights.empty() && biases.size() == weights.size() && ops.size() == weights.size(),
                    "taylorderiv: a chain needs as many biases and ops as weights, got ", biases.size(), ", ",
                    ops.size(), " and ", weights.size());
    std::vector<ChainLayer<S>> layers;
    int64_t width = x.size(2);
    size_t used = 0;
    for (size_t i = 0; i < weights.size(); ++i) {
      const Tensor &w = weights[i], &b = biases[i];
      STD_TORCH_CHECK(w.dim() == 2 && w.size(1) == width, "taylorderiv: weight ", i, " of a chain must be (out, ",
                      width, ")");
      STD_TORCH_CHECK(b.numel() == 0 || b.numel() == w.size(0), "taylorderiv: bias ", i, " of a chain must have ",
                      w.size(0), " elements, got ", b.numel());
      for (const Tensor& t : {w, b}) {
        STD_TORCH_CHECK(
            t.is_contiguous() && t.scalar_type() == x.scalar_type() && t.device() == x.device(),
            "taylorderiv: weights and biases of a chain must be contiguous, with the dtype and device of x");
      }
      int op = -1;
      const double* op_params = params.data() + used;
      if (!ops[i].empty()) {
        op = unary_op_index(ops[i]);
        used += unary_op_infos[op].params;
        STD_TORCH_CHECK(used <= params.size(), "taylorderiv: too few params for the ops of a chain");
      }
      layers.push_back(
          {width, w.size(0), w.const_data_ptr<S>(), b.numel() ? b.const_data_ptr<S>() : nullptr, op, op_params});
      width = w.size(0);
    }
    return layers;
  }
};

// Runs f(thread, workspace) for each thread's share of the tiles: tiles [share(t), share(t + 1)) belong to thread t,
// whichever worker runs it, so that sums over a thread's tiles are reproducible.
template <class S, class F>
std::vector<std::unique_ptr<S, decltype(&std::free)>> on_threads(const Chain<S>& chain, const F& f) {
  const int64_t threads = std::min<int64_t>(torch::stable::get_num_threads(), chain.tiles());
  // Gradients are summed over some tiles, and these sums over all: one long sum would lose digits.
  constexpr int64_t tiles_summed = 64;
  const int64_t gradients = chain.gradients(), numbers = chain.workspace();
  const int64_t bytes = ((numbers + gradients) * int64_t(sizeof(S)) + 63) / 64 * 64;
  std::vector<std::unique_ptr<S, decltype(&std::free)>> workspaces;
  for (int64_t t = 0; t < threads; ++t) {
    workspaces.emplace_back(static_cast<S*>(std::aligned_alloc(64, bytes)), &std::free);
    STD_TORCH_CHECK(workspaces.back() != nullptr, "taylorderiv: out of memory for ", bytes, " bytes of workspace");
  }
  torch::stable::parallel_for(0, threads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      S* const workspace = workspaces[t].get();
      S* const total = workspace + numbers;
      std::fill_n(workspace, gradients, S(0));
      std::fill_n(total, gradients, S(0));
      const int64_t first = chain.tiles() * t / threads, last = chain.tiles() * (t + 1) / threads;
      for (int64_t tile = first; tile < last; ++tile) {
        f(tile, workspace);
        if ((tile + 1 - first) % tiles_summed != 0) continue;
        for (int64_t i = 0; i < gradients; ++i) total[i] += workspace[i];
        std::fill_n(workspace, gradients, S(0));
      }
      for (int64_t i = 0; i < gradients; ++i) workspace[i] += total[i];
    }
  });
  return workspaces;
}

// The result, and what is saved for the backward pass: empty unless wanted.
std::tuple<Tensor, Tensor> chain(Tensor x, Tensor higher, Tensors weights, Tensors biases, std::vector<std::string> ops,
                                 std::vector<double> params, std::vector<int64_t> orders, std::vector<double> collapse,
                                 bool save) {
  const Description d{std::move(x),
                      std::move(higher),
                      std::move(weights),
                      std::move(biases),
                      std::move(ops),
                      std::move(params),
                      {std::move(orders), std::move(collapse)}};
  return with_scalar(d.x, [&](auto scalar) {
    using S = decltype(scalar);
    const auto layers = d.layers<S>();
    Tensor y = torch::stable::new_empty(d.x, {d.layout.view.size(), d.points(), layers.back().out});
    if (y.numel() == 0) return std::make_tuple(y, torch::stable::new_empty(d.x, {0}));
    using Mode = typename Chain<S>::Mode;
    const Chain<S> chain(layers, d.higher_data<S>(), d.layout.view, d.points(), save ? Mode::saving : Mode::forward);
    Tensor saved = torch::stable::new_empty(d.x, {save ? chain.saved() : 0});
    on_threads(chain, [&](int64_t tile, S* workspace) {
      chain.forward(tile, d.x.const_data_ptr<S>(), y.mutable_data_ptr<S>(),
                    save ? saved.mutable_data_ptr<S>() : nullptr, workspace);
    });
    return std::make_tuple(y, saved);
  });
}

// The gradients of x (empty unless wanted), of a seed's higher coefficients as they leave the first layer's weight
// (C - 1, out; else empty), of the weights, and of the biases. `saved` may be empty.
Tensors chain_backward(Tensor grad, Tensor x, Tensor higher, Tensor saved, Tensors weights, Tensors biases,
                       std::vector<std::string> ops, std::vector<double> params, std::vector<int64_t> orders,
                       std::vector<double> collapse, bool input_gradient) {
  const Description d{std::move(x),
                      std::move(higher),
                      std::move(weights),
                      std::move(biases),
                      std::move(ops),
                      std::move(params),
                      {std::move(orders), std::move(collapse)}};
  return with_scalar(d.x, [&](auto scalar) {
    using S = decltype(scalar);
    const auto layers = d.layers<S>();
    STD_TORCH_CHECK(grad.is_contiguous() && grad.scalar_type() == d.x.scalar_type() &&
                        grad.numel() == d.layout.view.size() * d.points() * layers.back().out,
                    "taylorderiv: grad must be a contiguous tensor of the shape and dtype of the chain's result");
    Tensors gradients{input_gradient ? torch::stable::empty_like(d.x) : torch::stable::new_empty(d.x, {0}),
                      d.seeded() ? torch::stable::new_zeros(d.x, {d.layout.view.size() - 1, layers[0].out})
                                 : torch::stable::new_empty(d.x, {0})};
    for (const auto* list : {&d.weights, &d.biases}) {
      for (const Tensor& t : *list) gradients.push_back(torch::stable::new_zeros(t, t.sizes()));
    }
    if (d.points() == 0) return gradients;
    const Chain<S> chain(layers, d.higher_data<S>(), d.layout.view, d.points(), Chain<S>::Mode::backward);
    STD_TORCH_CHECK(saved.numel() == 0 || (saved.numel() == chain.saved() && saved.is_contiguous() &&
                                           saved.scalar_type() == d.x.scalar_type()),
                    "taylorderiv: saved isn't what this chain saved");
    const auto workspaces = on_threads(chain, [&](int64_t tile, S* workspace) {
      chain.backward(tile, grad.const_data_ptr<S>(), d.x.const_data_ptr<S>(),
                     saved.numel() ? saved.const_data_ptr<S>() : nullptr,
                     input_gradient ? gradients[0].mutable_data_ptr<S>() : nullptr, workspace);
    });
    std::vector<S*> sums;
    for (const auto& workspace : workspaces) sums.push_back(workspace.get());
    if (d.seeded()) chain.reduce_higher(sums, gradients[1].mutable_data_ptr<S>());
    for (size_t i = 0; i < layers.size(); ++i) {
      Tensor &weight = gradients[2 + i], &bias = gradients[2 + layers.size() + i];
      chain.reduce(i, sums, weight.mutable_data_ptr<S>(), layers[i].bias ? bias.mutable_data_ptr<S>() : nullptr);
    }
    return gradients;
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(taylorderiv, CPU, m) {
  m.impl("chain", TORCH_BOX(&chain));
  m.impl("chain_backward", TORCH_BOX(&chain_backward));
}

}  // namespace taylorderiv
