// CUDA's runtime as far as our kernels use it, for a C++ compiler: a launch runs the blocks of a grid one after
// another, and the threads of a block in turns, from barrier to barrier (library.cpp).
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <functional>

#define __global__
#define __device__
#define __host__
#define __grid_constant__
#define __launch_bounds__(...)
#define __forceinline__ inline
#define __noinline__

struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
inline dim3 gridDim, blockDim, blockIdx, threadIdx;

enum cudaError_t { cudaSuccess = 0, cudaErrorNoKernelImageForDevice = 209 };
enum cudaDeviceAttr {
  cudaDevAttrMultiProcessorCount,
  cudaDevAttrMaxSharedMemoryPerMultiprocessor,
  cudaDevAttrMaxSharedMemoryPerBlockOptin
};
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };
using cudaStream_t = struct CUstream_st*;
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes = 0;
  cudaStream_t stream = nullptr;
};

namespace host_run {

// What the tests see and set.
struct State {
  void (*launched)(const void* kernel) = nullptr;   // told of every kernel that is launched
  void (*entered)(const char* function) = nullptr;  // told of every function that says TD_TRACE
  unsigned first_block = 0;                         // blocks before this one aren't run
  bool reversed = false;                            // whether the last thread of a block is the first to run
  bool early_copies = false;                        // whether asynchronous copies are done at once, not at the last
  cudaError_t error = cudaSuccess;                  // what launches return instead of running
  int multiprocessors = 2, shared_bytes = 227 << 10;
};
inline State state;

void run_block(const std::function<void()>& thread, size_t shared_bytes);

// A thread waits here for all others of its block, or of its warp.
void block_barrier();
void warp_barrier();

}  // namespace host_run

inline void __syncthreads() { host_run::block_barrier(); }
inline void __syncwarp() { host_run::warp_barrier(); }

template <class... Parameters, class... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               const Arguments&... arguments) {
  using host_run::state;
  if (state.error != cudaSuccess) return state.error;
  if (state.launched) state.launched(reinterpret_cast<const void*>(kernel));
  gridDim = config->gridDim;
  blockDim = config->blockDim;
  for (unsigned block = state.first_block; block < gridDim.x; ++block) {
    blockIdx = block;
    host_run::run_block([&] { kernel(arguments...); }, config->dynamicSmemBytes);
  }
  return cudaSuccess;
}

inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  *value = attribute == cudaDevAttrMultiProcessorCount ? host_run::state.multiprocessors : host_run::state.shared_bytes;
  return cudaSuccess;
}
inline cudaError_t cudaFuncSetAttribute(const void*, cudaFuncAttribute, int) { return cudaSuccess; }
inline cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, const void*, int, size_t) {
  *blocks = 1;
  return cudaSuccess;
}
inline cudaError_t cudaGetLastError() { return host_run::state.error; }
inline const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaSuccess ? "no error" : "no kernel image is available for execution on the device";
}
