// From a call to a running kernel: which variant, how many blocks, how much scratch memory.
#include <cuda_runtime.h>

#include <algorithm>

#include "kernels.h"

namespace taylorderiv {

namespace {

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Whether the variant holds the call's order, and every row of coefficients starts at a chunk.
bool fits(const CudaVariant& variant, const CudaCall& call) {
  if (variant.order == 0) return true;
  uintptr_t addresses = 0;
  for (const void* p : call.in) addresses |= reinterpret_cast<uintptr_t>(p);
  for (const void* p : call.out) addresses |= reinterpret_cast<uintptr_t>(p);
  return call.order <= variant.order && call.elements % variant.width == 0 &&
         addresses % (variant.width * variant.element_bytes) == 0;
}

}  // namespace

const char* start(const CudaVariant* variant, const CudaCall& call) {
  constexpr int64_t most_blocks = 0x7fffffff;       // CUDA's limit; a thread then takes several chunks
  constexpr int64_t most_scratch_bytes = 32 << 20;  // stays in the second-level cache
  while (!fits(*variant, call)) ++variant;
  const int64_t chunks = call.elements / variant->width;
  int64_t blocks = std::min(ceil_div(chunks, CudaVariant::block_size), most_blocks);
  void* scratch = nullptr;
  if (variant->scratch_bytes > 0) {
    const int64_t block_bytes = int64_t(CudaVariant::block_size) * variant->scratch_bytes * (call.order + 1);
    blocks = std::min(blocks, std::max<int64_t>(1, most_scratch_bytes / block_bytes));
    scratch = call.allocate(blocks * block_bytes);
  }
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(unsigned(blocks));
  config.blockDim = dim3(CudaVariant::block_size);
  config.stream = static_cast<cudaStream_t>(call.stream);
  const cudaError_t error = cudaLaunchKernelEx(&config, variant->kernel, call.layout, call.params, chunks, call.in[0],
                                               call.in[1], call.in[2], call.out[0], call.out[1], scratch);
  if (error == cudaSuccess) return nullptr;
  cudaGetLastError();  // what is reported here must not surface again at PyTorch's next check
  return cudaGetErrorString(error);
}

}  // namespace taylorderiv
