// The CUDA kernels as data, and the function that starts one. Neither PyTorch nor CUDA here: pointers and sizes.
#pragma once

#include <functional>

#include "packed_layout.h"

namespace taylorderiv {

enum class CudaPass { forward, backward, double_backward, cauchy, correlate };
enum class CudaStorage { f32, f64, f16, bf16 };  // 16-bit numbers are computed in float32

// An op's parameters, by value.
struct CudaParams {
  static constexpr int capacity = 2;
  double values[capacity];
};

// The work on tensors whose coefficient c of element i stands at [c * elements + i]; see passes.cuh for in and out.
struct CudaCall {
  PackedLayout layout;
  int order;  // the highest one in the layout
  CudaParams params;
  int64_t elements;
  const void* in[3];
  void* out[2];
  void* stream;
  // Returns device memory that lives as long as the kernel runs.
  std::function<void*(int64_t bytes)> allocate;
};

// A __global__ function. A chunk is as many adjacent elements as a thread takes at once.
using CudaKernel = void (*)(PackedLayout, CudaParams, int64_t chunks, const void* in0, const void* in1, const void* in2,
                            void* out0, void* out1, void* scratch);

// Code for a pass of an op: the first variant that fits a call serves it.
struct CudaVariant {
  static constexpr int block_size = 128;
  CudaKernel kernel;
  int order;                 // unrolled code, up to this one; 0: a loop for any order, in scratch memory
  int width, element_bytes;  // of a chunk
  int scratch_bytes;         // per thread and order + 1
};

// Ends with a variant of order 0. `op` is the op's index (the products ignore it). Each .cu file defines a few of
// these.
template <CudaPass pass, CudaStorage storage>
const CudaVariant* cuda_variants(int op);

// Starts a kernel; returns null, or what CUDA has to say against it.
const char* start(const CudaVariant*, const CudaCall&);

}  // namespace taylorderiv
