// The ops `chain` and `chain_backward` on the CPU: threads over tiles of points.
#include "../chain_arguments.h"
#include "chain.h"

#include <atomic>
#include <cstdlib>
#include <memory>

#if defined(__GLIBC__)
#include <malloc.h>
#endif

namespace taylorderiv {

template <>
const CpuGemm<float>& cpu_gemm<float>() {
  return TD_BEST_OF(gemm, f32);
}
template <>
const CpuGemm<double>& cpu_gemm<double>() {
  return TD_BEST_OF(gemm, f64);
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
  TD_CHECK(buffer != nullptr || bytes == 0, "out of memory for ", bytes, " bytes of workspace");
  return buffer;
}

// The ends of groups of tiles for threads that take one group after the other. The groups get smaller, down to about
// `least` tiles: there is little to add up, and no thread waits long for another one at the end.
std::vector<int64_t> group_ends(int64_t tiles, int64_t threads, int64_t least) {
  if (threads == 1) return {tiles};
  std::vector<int64_t> ends;
  int64_t end = 0;
  for (int64_t some; (some = (tiles - end) / (2 * threads)) > least;) ends.push_back(end += some);
  const int64_t left = tiles - end, of_least = (left + least * threads / 2) / (least * threads);
  const int64_t rest = std::min(std::max<int64_t>(of_least, 1) * threads, left);
  for (int64_t group = 1; group <= rest; ++group) ends.push_back(end + left * group / rest);
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
  const int64_t least = gradients > 0 ? chain.tiles_of_sum(threads) : 1;
  const std::vector<int64_t> ends = group_ends(tiles, threads, least);
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

// The largest blocks of memory that the C library keeps for the next step; how much it is told to keep; and how much of
// that blocks may take, beside other memory.
constexpr int64_t recycled_block_bytes = 33'000'000, kept_bytes = 160'000'000, recycled_bytes = 120'000'000;
constexpr int64_t worth_keeping_bytes = 1'000'000;

// The GNU C library gives free memory back to the system once that is twice the largest block there was, unless it is
// told otherwise. It isn't if the user has told it something.
void keep_memory() {
#if defined(__GLIBC__)
  static const bool once = [] {
    for (const char* name : {"GLIBC_TUNABLES", "MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_"}) {
      if (std::getenv(name) != nullptr) return false;
    }
    return mallopt(M_MMAP_THRESHOLD, 1 << 25) == 1 && mallopt(M_TRIM_THRESHOLD, kept_bytes) == 1;
  }();
  (void)once;
#endif
}

// What is saved of a chain's layers, tile after tile, in blocks of as many tiles each.
template <class S>
struct SavedTiles {
  std::vector<S*> blocks;
  int64_t tiles, block_tiles, tile_numbers;
  S* of(int64_t tile) const {
    return tile < tiles ? blocks[tile / block_tiles] + tile % block_tiles * tile_numbers : nullptr;
  }
  int64_t block_numbers(int64_t block) const {
    return std::min(tiles - block * block_tiles, block_tiles) * tile_numbers;
  }
};

// Of `tiles` tiles, in blocks that the C library keeps; in a single one if all of them were more than it keeps.
template <class S>
SavedTiles<S> saved_tiles(const Chain<S>& chain, int64_t tiles) {
  const int64_t numbers = chain.tile_saved(), bytes = numbers * int64_t(sizeof(S));
  const bool recycled = tiles * bytes <= recycled_bytes && bytes <= recycled_block_bytes;
  return {{}, tiles, std::max<int64_t>(recycled && bytes > 0 ? recycled_block_bytes / bytes : tiles, 1), numbers};
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
    if (y.numel() == 0) return std::make_tuple(y, Tensors{new_tensor(d.x, {0})});
    const Chain<S> chain(layers, higher_data<S>(d), d.layout.view, d.points(), false);
    const int64_t bytes = chain.tile_saved() * int64_t(sizeof(S));
    const int64_t fitting = bytes == 0 ? 0 : save < 0 ? chain.tiles() : std::min(save / bytes, chain.tiles());
    SavedTiles<S> to = saved_tiles(chain, fitting);
    if (to.tiles * bytes > worth_keeping_bytes) keep_memory();
    Tensors saved;
    for (int64_t i = 0; i == 0 || i * to.block_tiles < to.tiles; ++i) {
      saved.push_back(new_tensor(d.x, {to.block_numbers(i)}));
      to.blocks.push_back(saved.back().template mutable_data_ptr<S>());
    }
    const S* const x_data = d.x.const_data_ptr<S>();
    S* const y_data = y.mutable_data_ptr<S>();
    on_threads(chain, [&](int64_t tile, S*, S* workspace) {
      chain.forward(tile, x_data, y_data, to.of(tile), to.of(tile + 1), workspace);
    });
    return std::make_tuple(y, saved);
  });
}

template <class S>
SavedTiles<S> read_saved(const Chain<S>& chain, const Tensor& x, const Tensors& saved) {
  int64_t numbers = 0;
  for (const Tensor& block : saved) numbers += block.numel();
  SavedTiles<S> from = saved_tiles(chain, chain.tile_saved() == 0 ? 0 : numbers / chain.tile_saved());
  const int64_t blocks = std::max<int64_t>((from.tiles + from.block_tiles - 1) / from.block_tiles, 1);
  bool right =
      numbers == from.tiles * from.tile_numbers && from.tiles <= chain.tiles() && int64_t(saved.size()) == blocks;
  for (int64_t i = 0; right && i < blocks; ++i) {
    right = saved[i].numel() == from.block_numbers(i) && saved[i].is_contiguous() &&
            saved[i].scalar_type() == x.scalar_type();
    if (right) from.blocks.push_back(saved[i].template mutable_data_ptr<S>());
  }
  TD_CHECK(right, "saved isn't what this chain saved");
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
    TD_CHECK(grad.is_contiguous() && grad.scalar_type() == d.x.scalar_type() &&
                 grad.numel() == d.layout.view.size() * d.points() * layers.back().out,
             "grad must be a contiguous tensor of the shape and dtype of the chain's result");
    Tensors gradients{input_gradient ? new_tensor(d.x, d.x.sizes()) : new_tensor(d.x, {0}),
                      d.seeded() ? new_tensor(d.x, {d.layout.view.size() - 1, layers[0].out}) : new_tensor(d.x, {0})};
    for (const auto* list : {&d.weights, &d.biases}) {
      for (const Tensor& t : *list) gradients.push_back(new_tensor(t, t.sizes()));
    }
    if (d.points() == 0) {
      for (Tensor& gradient : gradients) torch::stable::zero_(gradient);
      return gradients;
    }
    const Chain<S> chain(layers, higher_data<S>(d), d.layout.view, d.points(), true);
    const auto from = read_saved(chain, d.x, saved);
    const S *const grad_data = grad.const_data_ptr<S>(), *const x_data = d.x.const_data_ptr<S>();
    S* const dx_data = input_gradient ? gradients[0].mutable_data_ptr<S>() : nullptr;
    const auto total = on_threads(chain, [&](int64_t tile, S* sum, S* workspace) {
      chain.backward(tile, grad_data, x_data, from.of(tile), from.of(tile + 1), dx_data, sum, workspace);
    });
    chain.add_higher(total.get());
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
