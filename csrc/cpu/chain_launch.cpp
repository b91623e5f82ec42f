// The ops `chain` and `chain_backward` on the CPU: threads over tiles of points.
#include "../chain_arguments.h"
#include "chain.h"

#include <atomic>
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

template <class S>
std::vector<ChainLayer<S>> typed(const std::vector<ChainArguments::Layer>& layers) {
  std::vector<ChainLayer<S>> result;
  for (const auto& layer : layers) {
    const S* const bias = layer.bias == nullptr ? nullptr : layer.bias->template const_data_ptr<S>();
    result.push_back({layer.in, layer.out, layer.weight->template const_data_ptr<S>(), bias, layer.op, layer.params});
  }
  return result;
}

template <class S>
const S* higher_data(const ChainArguments& d) {
  return d.seeded() ? d.higher.const_data_ptr<S>() : nullptr;
}

template <class S>
using Buffer = std::unique_ptr<S, decltype(&std::free)>;

template <class S>
Buffer<S> allocate(int64_t numbers) {
  const int64_t bytes = (numbers * int64_t(sizeof(S)) + 63) / 64 * 64;
  Buffer<S> buffer(static_cast<S*>(std::aligned_alloc(64, bytes)), &std::free);
  STD_TORCH_CHECK(buffer != nullptr || bytes == 0, "taylorderiv: out of memory for ", bytes, " bytes of workspace");
  return buffer;
}

// Gradients summed over a group of tiles, group by group.
template <class S>
struct GroupSums {
  int64_t groups;
  Buffer<S> sums;
};

// Runs f(tile, gradients, workspace) for all tiles, which adds to the gradients. They are divided into groups, and a
// thread that is done with one takes the next: no thread waits long for another that is slower. The groups, each with a
// sum of its own, and so the result, don't depend on which thread ran them.
template <class S, class F>
GroupSums<S> on_threads(const Chain<S>& chain, const F& f) {
  constexpr int64_t most_groups = 32, least_tiles = 4;
  constexpr double worth_a_thread = 5e6;  // operations: it takes longer than to wake one up
  const double operations = chain.operations();
  const int64_t tiles = chain.tiles(), gradients = chain.gradients();
  int64_t threads = std::min<int64_t>(torch::stable::get_num_threads(), tiles);
  threads = std::clamp<int64_t>(int64_t(operations / worth_a_thread), 1, threads);
  const int64_t groups = std::max(threads, std::min(tiles / least_tiles, most_groups));
  // Gradients are summed over some tiles, and these sums over all: one long sum would lose digits.
  constexpr int64_t tiles_summed = 64;
  std::vector<Buffer<S>> workspaces, partials;
  for (int64_t t = 0; t < threads; ++t) {
    workspaces.push_back(allocate<S>(chain.workspace()));
    partials.push_back(allocate<S>(tiles > groups * tiles_summed ? gradients : 0));
  }
  GroupSums<S> result{groups, allocate<S>(groups * gradients)};
  std::atomic<int64_t> next{0};
  torch::stable::parallel_for(0, threads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      for (int64_t group = next++; group < groups; group = next++) {
        const int64_t first = tiles * group / groups, last = tiles * (group + 1) / groups;
        S* const sum = result.sums.get() + group * gradients;
        S* const partial = last - first > tiles_summed ? partials[t].get() : sum;
        std::fill_n(sum, gradients, S(0));
        for (int64_t begun = first; begun < last; begun += tiles_summed) {
          if (partial != sum) std::fill_n(partial, gradients, S(0));
          const int64_t done = std::min(begun + tiles_summed, last);
          for (int64_t tile = begun; tile < done; ++tile) f(tile, partial, workspaces[t].get());
          if (partial != sum) chain.add_gradients(partial, sum);
        }
      }
    }
  });
  return result;
}

// The result, and what is saved for the backward pass: the layers of the first tiles, as many as fit into `save` bytes;
// of all tiles if that is negative.
std::tuple<Tensor, Tensor> chain(Tensor x, Tensor higher, Tensors weights, Tensors biases, std::vector<std::string> ops,
                                 std::vector<double> params, std::vector<int64_t> orders, std::vector<double> collapse,
                                 int64_t save, bool /*tf32*/) {
  const ChainArguments d{x, higher, weights, biases, ops, params, {orders, collapse}};
  return with_scalar(d.x, [&](auto scalar) {
    using S = decltype(scalar);
    const auto layers = typed<S>(d.layers());
    Tensor y = new_tensor(d.x, {d.layout.view.size(), d.points(), layers.back().out});
    if (y.numel() == 0) return std::make_tuple(y, new_tensor(d.x, {0}));
    const Chain<S> chain(layers, higher_data<S>(d), d.layout.view, d.points(), false);
    Tensor saved = new_tensor(d.x, {save == 0 ? 0 : chain.saved(save)});
    on_threads(chain, [&](int64_t tile, S*, S* workspace) {
      chain.forward(tile, d.x.const_data_ptr<S>(), y.mutable_data_ptr<S>(), saved.mutable_data_ptr<S>(), saved.numel(),
                    workspace);
    });
    return std::make_tuple(y, saved);
  });
}

// The gradients of x (empty unless wanted), of a seed's higher coefficients as they leave the first layer's weight
// (C - 1, out; else empty), of the weights, and of the biases. `saved` may be empty.
Tensors chain_backward(Tensor grad, Tensor x, Tensor higher, Tensor saved, Tensors weights, Tensors biases,
                       std::vector<std::string> ops, std::vector<double> params, std::vector<int64_t> orders,
                       std::vector<double> collapse, bool input_gradient, bool /*tf32*/) {
  const ChainArguments d{x, higher, weights, biases, ops, params, {orders, collapse}};
  return with_scalar(d.x, [&](auto scalar) {
    using S = decltype(scalar);
    const auto layers = typed<S>(d.layers());
    STD_TORCH_CHECK(grad.is_contiguous() && grad.scalar_type() == d.x.scalar_type() &&
                        grad.numel() == d.layout.view.size() * d.points() * layers.back().out,
                    "taylorderiv: grad must be a contiguous tensor of the shape and dtype of the chain's result");
    Tensors gradients{
        input_gradient ? new_tensor(d.x, d.x.sizes()) : new_tensor(d.x, {0}),
        d.seeded() ? torch::stable::new_zeros(d.x, {d.layout.view.size() - 1, layers[0].out}) : new_tensor(d.x, {0})};
    for (const auto* list : {&d.weights, &d.biases}) {
      for (const Tensor& t : *list) gradients.push_back(torch::stable::new_zeros(t, t.sizes()));
    }
    if (d.points() == 0) return gradients;
    const Chain<S> chain(layers, higher_data<S>(d), d.layout.view, d.points(), true);
    STD_TORCH_CHECK(
        chain.could_have_saved(saved.numel()) && saved.is_contiguous() && saved.scalar_type() == d.x.scalar_type(),
        "taylorderiv: saved isn't what this chain saved");
    const auto sums = on_threads(chain, [&](int64_t tile, S* sum, S* workspace) {
      chain.backward(tile, grad.const_data_ptr<S>(), d.x.const_data_ptr<S>(), saved.const_data_ptr<S>(), saved.numel(),
                     input_gradient ? gradients[0].mutable_data_ptr<S>() : nullptr, sum, workspace);
    });
    const auto total = allocate<S>(chain.gradients());
    chain.reduce(sums.groups, sums.sums.get(), total.get());
    if (d.seeded()) chain.read_higher(total.get(), gradients[1].mutable_data_ptr<S>());
    for (size_t i = 0; i < layers.size(); ++i) {
      Tensor &weight = gradients[2 + i], &bias = gradients[2 + layers.size() + i];
      chain.read_layer(i, total.get(), weight.mutable_data_ptr<S>(),
                       layers[i].bias ? bias.mutable_data_ptr<S>() : nullptr);
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
