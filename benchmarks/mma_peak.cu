// What a GPU's mma instructions and float32 units do at most: a loop of nothing else. Prints tera-operations per
// second.
//
//   nvcc -O2 -arch=native benchmarks/mma_peak.cu -o /tmp/mma_peak && /tmp/mma_peak
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>

namespace {

constexpr int independent = 12, repeats = 4000;

struct Tf32 {
  static constexpr const char* name = "mma tf32 m16n8k8";
  static constexpr double operations = 2 * 16 * 8 * 8;  // of a warp
  float d[4] = {};
  __device__ void operator()(uint32_t x) {
    asm volatile(
        "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %4, %5}, {%4, %5}, "
        "{%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(x), "r"(x + 1));
  }
};

struct Bf16 {
  static constexpr const char* name = "mma bf16 m16n8k16";
  static constexpr double operations = 2 * 16 * 8 * 16;
  float d[4] = {};
  __device__ void operator()(uint32_t x) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %4, %5}, {%4, %5}, "
        "{%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(x), "r"(x + 1));
  }
};

struct Fma {
  static constexpr const char* name = "fma float32";
  static constexpr double operations = 2 * 32 * 4;
  float d[4] = {};
  __device__ void operator()(uint32_t x) {
    for (float& sum : d) asm volatile("fma.rn.f32 %0, %1, %1, %0;" : "+f"(sum) : "f"(__uint_as_float(x)));
  }
};

template <class Operation>
__global__ void __launch_bounds__(256, 1) loop(float* out) {
  Operation operation[independent];
  for (int r = 0; r < repeats; ++r) {
#pragma unroll
    for (int i = 0; i < independent; ++i) operation[i](threadIdx.x);
  }
  float sum = 0;
  for (auto& o : operation) sum += o.d[0] + o.d[1] + o.d[2] + o.d[3];
  out[blockIdx.x * blockDim.x + threadIdx.x] = sum;
}

template <class Operation>
void measure(float* out, int multiprocessors) {
  constexpr int threads = 256, blocks = 2;
  cudaEvent_t start, end;
  cudaEventCreate(&start);
  cudaEventCreate(&end);
  float best = 1e9f;
  for (int run = 0; run < 5; ++run) {
    cudaEventRecord(start);
    loop<Operation><<<blocks * multiprocessors, threads>>>(out);
    cudaEventRecord(end);
    cudaEventSynchronize(end);
    float milliseconds = 0;
    cudaEventElapsedTime(&milliseconds, start, end);
    best = std::min(best, milliseconds);
  }
  const double warps = double(blocks) * multiprocessors * threads / 32;
  std::printf("%-18s %7.1f\n", Operation::name, warps * independent * repeats * Operation::operations / best / 1e9);
}

}  // namespace

int main() {
  int multiprocessors = 0;
  cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, 0);
  float* out = nullptr;
  cudaMalloc(&out, 2 * multiprocessors * 256 * sizeof(float));
  measure<Tf32>(out, multiprocessors);
  measure<Bf16>(out, multiprocessors);
  measure<Fma>(out, multiprocessors);
  std::printf("%s\n", cudaGetErrorString(cudaGetLastError()));
}
