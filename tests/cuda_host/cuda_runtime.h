// CUDA's runtime as far as our kernels use it, for a C++ compiler: a launch runs the threads of a grid one after
// another.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>

#define __global__
#define __device__
#define __host__
#define __grid_constant__
#define __launch_bounds__(...)

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
using cudaStream_t = struct CUstream_st*;
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes = 0;
  cudaStream_t stream = nullptr;
};

namespace host_run {

// What the tests see and set.
struct State {
  void (*launched)(const void* kernel) = nullptr;  // told of every kernel that is launched
  unsigned first_block = 0;                        // blocks before this one aren't run
  cudaError_t error = cudaSuccess;                 // what launches return instead of running
};
inline State state;

}  // namespace host_run

template <class... Parameters, class... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               const Arguments&... arguments) {
  using host_run::state;
  if (state.error != cudaSuccess) return state.error;
  if (state.launched) state.launched(reinterpret_cast<const void*>(kernel));
  gridDim = config->gridDim;
  blockDim = config->blockDim;
  for (unsigned block = state.first_block; block < gridDim.x; ++block) {
    for (unsigned thread = 0; thread < blockDim.x; ++thread) {
      blockIdx = block;
      threadIdx = thread;
      kernel(arguments...);
    }
  }
  return cudaSuccess;
}

inline cudaError_t cudaGetLastError() { return host_run::state.error; }
inline const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaSuccess ? "no error" : "no kernel image is available for execution on the device";
}
