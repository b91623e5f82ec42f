// The ops `chain` and `chain_backward` on the CPU: threads over tiles of points.
#include "../chain_arguments.h"
#include "chain.h"

#include <array>
#include <atomic>
#include <cstdlib>
#include <memory>

namespace taylorderiv {

template <>
const CpuGemm<float>& cpu_gemm<float>() {
#ifdef TD_AVX512
  if (best_instruction_set() == InstructionSet::avx512) return gemm_avx512_f32;
#endif
#ifdef TD_X86
  if (best_instruction_set() == InstructionSet::avx2) return gemm_avx2_f32;
#endif
  return gemm_baseline_f32;
}

template <>
const CpuGemm<double>& cpu_gemm<double>() {
#ifdef TD_AVX512
  if (best_instruction_set() == InstructionSet::avx512) return gemm_avx512_f64;
#endif
#ifdef TD_X86
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

// The ends of groups of tiles for threads that take one group after the other. The groups get smaller: there is little
// to add up, and no thread waits long for another one at the end.
std::vector<int64_t> group_ends(int64_t tiles, int64_t threads, bool summed) {
  const int64_t least = summed ? std::max<int64_t>(tiles / (32 * threads), 1) : 1;
  std::vector<int64_t> ends;
  for (int64_t end = 0; end < tiles; ends.push_back(end)) {
    const int64_t left = tiles - end;
    end += threads == 1 ? left : std::min(std::max(left / (2 * threads), least), left);
  }
  return ends;
}

// Runs f(tile, gradients, workspace) for all tiles, which adds to the gradients; returns their sum. Each group of tiles
// has a sum of its own, so that the result doesn't depend on which thread ran it.
template <class S, class F>
Buffer<S> on_threads(const Chain<S>& chain, const F& f) {
  constexpr double worth_a_thread = 5e6;  // operations: it takes longer than to wake one up
  const double operations = chain.operations();
  const int64_t tiles = chain.tiles(), gradients = chain.gradients();
  int64_t threads = std::min<int64_t>(torch::stable::get_num_threads(), tiles);
  threads = std::clamp<int64_t>(int64_t(operations / worth_a_thread), 1, threads);
  const std::vector<int64_t> ends = group_ends(tiles, threads, gradients > 0);
  const int64_t groups = int64_t(ends.size());
  // Gradients are summed over some tiles, and these sums over all: one long sum would lose digits.
  constexpr int64_t tiles_summed = 64;
  std::vector<Buffer<S>> workspaces, partials;
  for (int64_t t = 0; t < threads; ++t) {
    workspaces.push_back(allocate<S>(chain.workspace()));
    partials.push_back(allocate<S>(tiles > tiles_summed ? gradients : 0));
  }
  const auto sums = allocate<S>(groups * gradients);
  std::atomic<int64_t> next{0};
  torch::stable::parallel_for(0, threads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      for (int64_t group = next++; group < groups; group = next++) {
        const int64_t first = group == 0 ? 0 : ends[group - 1], last = ends[group];
        S* const sum = sums.get() + group * gradients;
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
  auto total = allocate<S>(gradients);
  constexpr int64_t some = 1024, worth_numbers = 1 << 18;
  torch::stable::parallel_for(
      0, (gradients + some - 1) / some, std::max<int64_t>(worth_numbers / (groups * some), 1),
      [&](int64_t begin, int64_t end) { chain.reduce(groups, sums.get(), begin * some, end * some, total.get()); });
  return total;
}

// What is saved of a chain's layers, tile after tile, in one or two blocks. Memory smaller than this isn't new: the C
// library keeps it for the next step, unless all that it would have to keep is twice as much.
constexpr int64_t recycled_bytes = 33'000'000;

template <class S>
struct SavedTiles {
  S* blocks[2];
  int64_t tiles[2], tile_numbers;
  S* of(int64_t tile) const {
    if (tile < tiles[0]) return blocks[0] + tile * tile_numbers;
    return tile - tiles[0] < tiles[1] ? blocks[1] + (tile - tiles[0]) * tile_numbers : nullptr;
  }
};

// How many of a chain's first tiles are saved in either block, of as many as fit into `save` bytes, of all tiles if
// that is negative.
template <class S>
std::array<int64_t, 2> saved_tiles(const Chain<S>& chain, int64_t save) {
  const int64_t bytes = chain.tile_saved() * int64_t(sizeof(S));
  if (bytes == 0 || save == 0) return {0, 0};
  const int64_t tiles = save < 0 ? chain.tiles() : std::min(save / bytes, chain.tiles()),
                first = recycled_bytes / bytes;
  if (save < 0 || tiles <= first || tiles > 2 * first) return {tiles, 0};
  return {first, tiles - first};
}

// The result, and what is saved for the backward pass: the layers of the first tiles, as many as fit into `save` bytes;
// of all tiles if that is negative.
std::tuple<Tensor, Tensors> chain(Tensor x, Tensor higher, Tensors weights, Tensors biases,
                                  std::vector<std::string> ops, std::vector<double> params, std::vector<int64_t> orders,
                                  std::vector<double> collapse, int64_t save, bool /*tf32*/) {
  const ChainArguments d{x, higher, weights, biases, ops, params, {orders, collapse}};
  return with_scalar(d.x, [&](auto scalar) {
    using S = decltype(scalar);
    const auto layers = typed<S>(d.layers());
    Tensor y = new_tensor(d.x, {d.layout.view.size(), d.points(), layers.back().out});
    Tensors saved{new_tensor(d.x, {0}), new_tensor(d.x, {0})};
    if (y.numel() == 0) return std::make_tuple(y, saved);
    const Chain<S> chain(layers, higher_data<S>(d), d.layout.view, d.points(), false);
    const auto tiles = saved_tiles(chain, save);
    for (int i = 0; i < 2; ++i) {
      if (tiles[i] > 0) saved[i] = new_tensor(d.x, {tiles[i] * chain.tile_saved()});
    }
    const SavedTiles<S> to{
        {saved[0].mutable_data_ptr<S>(), saved[1].mutable_data_ptr<S>()}, {tiles[0], tiles[1]}, chain.tile_saved()};
    const S* const x_data = d.x.const_data_ptr<S>();
    S* const y_data = y.mutable_data_ptr<S>();
    on_threads(chain,
               [&](int64_t tile, S*, S* workspace) { chain.forward(tile, x_data, y_data, to.of(tile), workspace); });
    return std::make_tuple(y, saved);
  });
}

template <class S>
SavedTiles<const S> read_saved(const Chain<S>& chain, const Tensor& x, const Tensors& saved) {
  STD_TORCH_CHECK(saved.size() == 2, "taylorderiv: saved must be two tensors, got ", saved.size());
  SavedTiles<const S> from{{}, {}, chain.tile_saved()};
  for (int i = 0; i < 2; ++i) {
    const int64_t numbers = saved[i].numel();
    if (numbers > 0 && from.tile_numbers > 0) from.tiles[i] = numbers / from.tile_numbers;
    STD_TORCH_CHECK(numbers == from.tiles[i] * from.tile_numbers && saved[i].is_contiguous() &&
                        saved[i].scalar_type() == x.scalar_type() && from.tiles[0] + from.tiles[1] <= chain.tiles(),
                    "taylorderiv: saved isn't what this chain saved");
    from.blocks[i] = saved[i].template const_data_ptr<S>();
  }
  return from;
}

// The gradients of x (empty unless wanted), of a seed's higher coefficients as they leave the first layer's weight
// (C - 1, out; else empty), of the weights, and of the biases. What was saved may be empty.
Tensors chain_backward(Tensor grad, Tensor x, Tensor higher, Tensors saved, Tensors weights, Tensors biases,
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
    const auto from = read_saved(chain, d.x, saved);
    const S *const grad_data = grad.const_data_ptr<S>(), *const x_data = d.x.const_data_ptr<S>();
    S* const dx_data = input_gradient ? gradients[0].mutable_data_ptr<S>() : nullptr;
    const auto total = on_threads(chain, [&](int64_t tile, S* sum, S* workspace) {
      chain.backward(tile, grad_data, x_data, from.of(tile), dx_data, sum, workspace);
    });
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
