// The fused chain for CUDA as data, and the function that starts it. Neither PyTorch nor CUDA here: pointers and sizes.
#pragma once

#include <functional>

#include "chain_tiling.h"
#include "kernels.h"

namespace taylorderiv {

// How matrix products are computed. Of 16-bit numbers, sums are kept in float32; of float32, with three products of
// TF32 numbers for each (which is as accurate as float32), or, if PyTorch's user allows it, with one.
enum class ChainArithmetic { f32, tf32, f64, f16, bf16 };

// y = activation(x weight^T + bias). Of PyTorch's memory: (out, in), (out); null where there is none, or it isn't
// wanted.
struct CudaChainLayer {
  int in, out;
  int op;  // index of the unary op, or -1
  CudaParams params;
  const void *weight, *bias;
  void *weight_gradient, *bias_gradient;
};

// What the kernels know.
struct CudaChain {
  static constexpr int capacity = ChainTiling::most_layers;

  PackedLayout layout;
  int coefficients, order;  // the highest one in the layout
  ChainArithmetic arithmetic;
  int layers;
  CudaChainLayer layer[capacity];
  int64_t points;
  const void *x, *grad;  // (C, points, in of the first layer), (C, points, out of the last one)
  void *y, *dx;          // dx may be null
  void* saved;           // null, or room for chain_saved() numbers
  void* stream;
};

// Called by start_*() for device memory that lives as long as the kernels run.
using CudaAllocate = std::function<void*(int64_t bytes)>;

// Numbers (float64, or else float32) that the forward pass saves for the backward pass. -1 if the chain doesn't fit
// into shared memory.
int64_t chain_saved(const CudaChain&, int device);

// They start the kernels of a pass; and return null, or what CUDA has to say against it.
const char* start_chain(const CudaChain&, int device, const CudaAllocate&);
const char* start_chain_backward(const CudaChain&, int device, const CudaAllocate&);

}  // namespace taylorderiv
