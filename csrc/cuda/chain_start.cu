// From a chain to running kernels: its weights packed, its tiles, its blocks, and what these summed brought together.
#define TD_VARIANT cuda
#include <cuda_runtime.h>

#include <algorithm>

#include "chain_ops.h"
#include "chain_task.h"
#include "element.cuh"
#include "split_jets.cuh"

TD_NAMESPACE_BEGIN

// A number of a packed weight of so many rows: of which row, and which column. See PackedOperand.
template <class Number>
__device__ __forceinline__ void unpacked(int64_t at, int rows, int& row, int& column) {
  using S = Slot<Number>;
  const int64_t slot = at / S::numbers, tile = slot / 32;
  const int thread = slot % 32, tiles = rows / 8;
  row = int(tile % tiles) * 8 + thread / 4;
  column = int(tile / tiles) * S::group + thread % 4 * S::numbers + at % S::numbers;
}

// Weights and biases as the other kernels want them: padded with zeros, in the order of fragments. A block has one
// layer.
template <class Number, class S>
__global__ void __launch_bounds__(256, 1) pack_chain(const __grid_constant__ ChainTask task, bool backward) {
  const int i = blockIdx.x % task.layers;
  const int64_t thread = int64_t(blockIdx.x / task.layers) * blockDim.x + threadIdx.x;
  const int64_t threads = int64_t(gridDim.x / task.layers) * blockDim.x;
  Number* const packed = static_cast<Number*>(task.packed);
  const CudaChainLayer& layer = task.layer[i];
  const ChainPlaces& places = task.places[i];
  const S* const weight = static_cast<const S*>(layer.weight);
  const int ins = places.ins, outs = places.outs;
  const auto number = [&](int out, int in) {
    return out < layer.out && in < layer.in ? widened(weight[int64_t(out) * layer.in + in]) : Number(0);
  };
  const auto for_each = [&](int rows, int columns, const auto& f) {
    for (int64_t at = thread; at < int64_t(rows) * columns; at += threads) f(at);
  };
  if (task.is_thin_input(i)) {
    for_each(layer.in, outs, [&](int64_t at) { packed[places.weight + at] = number(int(at % outs), int(at / outs)); });
  } else if (task.is_thin_output(i)) {
    for_each(layer.out, ins, [&](int64_t at) { packed[places.weight + at] = number(int(at / ins), int(at % ins)); });
  } else if (task.tiling.split) {
    for_each(ins, outs, [&](int64_t at) {
      const int out = int(at / ins), in = int(at % ins);
      const Parts parts(float(number(out, in)), 0.0f);
#pragma unroll
      for (int part = 0; part < Parts::count; ++part) {
        const auto put = [&](int64_t first, int rows, int row, int k) {
          const int64_t place = SplitOperand::place(rows / 8, row, k, part);
          reinterpret_cast<uint16_t*>(packed + first)[place] = uint16_t(parts.of[part]);
        };
        put(places.weight, outs, out, in);
        if (backward) put(places.transposed, ins, in, out);
      }
    });
  } else {
    for_each(ins, outs, [&](int64_t at) {
      int out, in;
      unpacked<Number>(at, outs, out, in);
      packed[places.weight + at] = number(out, in);
      if (!backward) return;
      unpacked<Number>(at, ins, in, out);
      packed[places.transposed + at] = number(out, in);
    });
  }
  if (layer.bias == nullptr) return;
  for (int64_t at = thread; at < outs; at += threads) {
    packed[places.bias + at] = at < layer.out ? widened(static_cast<const S*>(layer.bias)[at]) : Number(0);
  }
}

// The gradients of weights and biases: the sums of all blocks, always added in the same order. Each warp adds those of
// every 16th block, neighbouring threads adjacent numbers; then a thread adds the warps' results.
constexpr int reducing_warps = 16;

// Puts the n-th of a block's sums where it belongs.
template <class Number, class S>
__device__ __forceinline__ void store_gradient(const ChainTask& task, int64_t n, Number sum) {
  int i = task.layers - 1;
  while (n < task.places[i].weight_sums) --i;
  const CudaChainLayer& layer = task.layer[i];
  if (n >= task.places[i].bias_sums) {
    n -= task.places[i].bias_sums;
    if (layer.bias_gradient != nullptr && n < layer.out) narrow(sum, static_cast<S*>(layer.bias_gradient)[n]);
    return;
  }
  n -= task.places[i].weight_sums;
  const int columns = task.places[i].ins, tiles = columns / 8;
  int out, in;
  if (!task.fixed()) {
    weight_gradient_at<Number>(n, tiles, out, in);
  } else if (task.is_thin_input(i) || task.is_thin_output(i)) {
    out = int(n / columns);
    in = int(n % columns);
  } else {
    const int64_t tile = n / 128, all_tiles = task.places[i].outs / 8;
    if (task.tiling.split) {
      product_of_columns_at<Number, true>(tile / all_tiles, tile % all_tiles, n % 4, n / 4 % 32, in, out);
    } else {
      product_of_columns_at<Number>(tile / all_tiles, tile % all_tiles, n % 4, n / 4 % 32, in, out);
    }
  }
  if (layer.weight_gradient != nullptr && out < layer.out && in < layer.in) {
    narrow(sum, static_cast<S*>(layer.weight_gradient)[int64_t(out) * layer.in + in]);
  }
}

template <class Number, class S>
__global__ void __launch_bounds__(32 * reducing_warps, 1)
    reduce_chain(const __grid_constant__ ChainTask task, int blocks) {
  Number* const of_warps = static_cast<Number*>(shared_memory());
  const int warp = threadIdx.x / 32;
  for (int64_t begin = int64_t(blockIdx.x) * 32; begin < task.sums; begin += int64_t(gridDim.x) * 32) {
    const int64_t n = begin + lane();
    Number sum(0);
    if (n < task.sums) {
      const Number* const numbers = static_cast<const Number*>(task.blocks) + n;
#pragma unroll 8
      for (int block = warp; block < blocks; block += reducing_warps) sum += numbers[block * task.block_numbers];
    }
    of_warps[threadIdx.x] = sum;
    __syncthreads();
    if (warp == 0 && n < task.sums) {
      for (int other = 1; other < reducing_warps; ++other) sum += of_warps[other * 32 + lane()];
      store_gradient<Number, S>(task, n, sum);
    }
    __syncthreads();
  }
}

namespace {

// Whether the op's activation, at the chain's order, has unrolled code.
bool is_unrolled(int op, int order) {
#define TD_CASE(Op) || op == Place::Op
  return op < 0 || (order <= highest_chain_order && (false TD_CHAIN_OPS(TD_CASE)));
#undef TD_CASE
}

// The first error of several calls.
class Errors {
 public:
  void operator()(cudaError_t error) {
    if (error == cudaSuccess) return;
    cudaGetLastError();  // what is reported here must not surface again at PyTorch's next check
    if (first_ == cudaSuccess) first_ = error;
  }
  const char* message() const { return first_ == cudaSuccess ? nullptr : cudaGetErrorString(first_); }

 private:
  cudaError_t first_ = cudaSuccess;
};

CudaDevice describe(int device, Errors& check) {
  const auto attribute = [&](cudaDeviceAttr name) {
    int value = 0;
    check(cudaDeviceGetAttribute(&value, name, device));
    return value;
  };
  return {attribute(cudaDevAttrMultiProcessorCount), attribute(cudaDevAttrMaxSharedMemoryPerMultiprocessor),
          attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin)};
}

// The index of the layout that the chain's jets have, if there is code to keep them in registers from its first layer
// to its last, which has no activation; or -1.
int fixed_layout(const CudaChain& chain) {
  const int last = chain.layers - 1;
  if (last == 0 || chain.layer[last].op >= 0 || chain.layer[0].in > part_columns) return -1;
  for (int i = 0; i < last; ++i) {
    if (!is_fixed_op(chain.layer[i].op)) return -1;
  }
  return FixedLayouts::index_of(chain.layout);
}

ChainTask plan(const CudaChain& chain, bool backward, const CudaDevice& device) {
  int widest = 1, widest_activated = 1;
  for (int i = 0; i < chain.layers; ++i) {
    widest = std::max({widest, std::min(chain.layer[i].in, part_columns), chain.layer[i].out});
    if (chain.layer[i].op >= 0) widest_activated = std::max(widest_activated, chain.layer[i].out);
  }
  const int bytes = chain.arithmetic == ChainArithmetic::f64 ? sizeof(double) : sizeof(float);
  const int fixed = fixed_layout(chain);
  int thin = 0;
  for (const int columns : {chain.layer[0].in, chain.layer[chain.layers - 1].out}) {
    if (ChainTiling::is_thin(columns)) thin += columns;
  }
  // Fewer points are better off with a few on each multiprocessor.
  if (fixed >= 0 && chain.points >= 16 * int64_t(device.multiprocessors)) {
    // Both passes in parts, or none: what the forward pass computes mustn't depend on whether it saves its layers.
    for (const bool split : {true, false}) {
      if (split && chain.arithmetic != ChainArithmetic::f32) continue;
      const auto tiling = ChainTiling::of_fixed(chain.coefficients, widest_activated, widest, thin, bytes, split,
                                                split || backward, device);
      if (tiling.points > 0) return {chain, tiling, fixed, backward};
    }
  }
  return {chain, ChainTiling(chain.coefficients, widest, bytes, backward, chain.points, device), -1, backward};
}

template <class Number, class S>
struct Start {
  const CudaChain& chain;
  int device;
  const CudaAllocate& allocate;

  const char* operator()(bool backward) const {
    Errors check;
    const CudaDevice properties = describe(device, check);
    if (check.message() != nullptr) return check.message();
    // What the forward pass saves, it saves for the backward pass's tiles.
    ChainTask task = plan(chain, backward || chain.saved != nullptr, properties);
    if (task.tiling.points == 0) return "the layers don't fit into its shared memory";
    const ChainKernel kernel = backward ? this->kernel<true>(task) : this->kernel<false>(task);
    int64_t scratch_bytes = 0;  // of a thread
    for (int i = 0; i < chain.layers; ++i) {
      task.loops[i] = !is_unrolled(chain.layer[i].op, chain.order);
      if (task.loops[i]) scratch_bytes = loop_scratch_bytes(chain.order);
    }
    if (task.fixed() && !backward) {
      task.tiling.shared_bytes = (task.tiling.thin + task.tiling.buffer) * int64_t(sizeof(Number));  // one is enough
    }
    const int shared_bytes = int(task.tiling.shared_bytes), threads = task.tiling.threads;
    int resident = 0;
    check(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize,
                               shared_bytes));
    check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&resident, reinterpret_cast<const void*>(kernel), threads,
                                                        shared_bytes));
    if (check.message() != nullptr) return check.message();
    const int most_blocks = std::max(resident, 1) * properties.multiprocessors;
    const int blocks = int(std::min<int64_t>(task.tiles, most_blocks));
    const auto numbers = [](int64_t count) { return round_up(count * int64_t(sizeof(Number)), 256); };
    const int64_t packed_bytes = numbers(task.packed_numbers);
    const int64_t blocks_bytes = backward ? numbers(task.block_numbers * blocks) : 0;
    char* const memory =
        static_cast<char*>(allocate(packed_bytes + blocks_bytes + int64_t(blocks) * threads * scratch_bytes));
    task.packed = memory;
    task.blocks = memory + packed_bytes;
    task.scratch = memory + packed_bytes + blocks_bytes;

    int64_t most_of_layer = 1;
    for (int i = 0; i < chain.layers; ++i) {
      most_of_layer = std::max(most_of_layer, int64_t(task.places[i].ins) * task.places[i].outs);
    }
    const int packing = int(std::min<int64_t>((most_of_layer + 255) / 256, most_blocks));  // for a layer
    launch(check, packing * chain.layers, 256, 0, &pack_chain<Number, S>, task, backward);
    launch(check, blocks, threads, shared_bytes, kernel, task);
    if (backward) {
      const int reducing = int(std::min<int64_t>((task.sums + 31) / 32, 8 * properties.multiprocessors));
      launch(check, reducing, 32 * reducing_warps, 32 * reducing_warps * int(sizeof(Number)), &reduce_chain<Number, S>,
             task, blocks);
    }
    return check.message();
  }

 private:
  template <bool backward>
  static ChainKernel kernel(const ChainTask& task) {
    if (!task.fixed()) return chain_kernel<Number, backward>();
    return task.tiling.split ? split_chain_kernel<backward>(task.fixed_layout)
                             : fixed_chain_kernel<Number, backward>(task.fixed_layout);
  }

  // Series of the op with most of them, in the widest number.
  static int64_t loop_scratch_bytes(int order) {
    int aux = 0;
#define TD_AUX(Op) aux = std::max(aux, Op::aux);
    TD_UNARY_OPS(TD_AUX)
#undef TD_AUX
    return scratch_size(order, aux) * int64_t(sizeof(double));
  }

  template <class Kernel, class... Arguments>
  void launch(Errors& check, int blocks, int threads, int shared_bytes, Kernel kernel,
              const Arguments&... arguments) const {
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(unsigned(blocks));
    config.blockDim = dim3(unsigned(threads));
    config.dynamicSmemBytes = size_t(shared_bytes);
    config.stream = static_cast<cudaStream_t>(chain.stream);
    check(cudaLaunchKernelEx(&config, kernel, arguments...));
  }
};

const char* start(const CudaChain& chain, int device, const CudaAllocate& allocate, bool backward) {
  switch (chain.arithmetic) {
    case ChainArithmetic::f64:
      return Start<double, double>{chain, device, allocate}(backward);
    case ChainArithmetic::f16:
      return Start<float, __half>{chain, device, allocate}(backward);
    case ChainArithmetic::bf16:
      return Start<float, __nv_bfloat16>{chain, device, allocate}(backward);
    default:
      return Start<float, float>{chain, device, allocate}(backward);
  }
}

}  // namespace

TD_NAMESPACE_END

namespace taylorderiv {

int64_t chain_saved(const CudaChain& chain, int device) {
  Errors check;
  const CudaDevice properties = describe(device, check);
  if (check.message() != nullptr) return -1;  // the start says why
  const ChainTask task = plan(chain, true, properties);
  return task.tiling.points == 0 ? -1 : task.tiles * task.images * task.image;
}

const char* start_chain(const CudaChain& chain, int device, const CudaAllocate& allocate) {
  return start(chain, device, allocate, false);
}

const char* start_chain_backward(const CudaChain& chain, int device, const CudaAllocate& allocate) {
  return start(chain, device, allocate, true);
}

}  // namespace taylorderiv
