// What a GPU's mma instruction for TF32 does at most: a loop of nothing else. Prints tera-operations per second.
//
//   nvcc -O2 -arch=native benchmarks/mma_peak.cu -o mma_peak && ./mma_peak
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>

constexpr int independent = 12, repeats = 4000, threads = 256, blocks = 2;  // of a multiprocessor
constexpr double operations = 2 * 16 * 8 * 8;                               // of a warp's instruction

__global__ void __launch_bounds__(threads, 1) loop(float* out) {
  float d[independent][4] = {};
  const uint32_t x = threadIdx.x;
  for (int r = 0; r < repeats; ++r) {
#pragma unroll
    for (int i = 0; i < independent; ++i) {
      asm volatile(
          "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %4, %5}, {%4, %5}, "
          "{%0, %1, %2, %3};"
          : "+f"(d[i][0]), "+f"(d[i][1]), "+f"(d[i][2]), "+f"(d[i][3])
          : "r"(x), "r"(x + 1));
    }
  }
  float sum = 0;
  for (const auto& part : d) sum += part[0] + part[1] + part[2] + part[3];
  out[blockIdx.x * blockDim.x + threadIdx.x] = sum;
}

int main() {
  int multiprocessors = 0;
  cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, 0);
  float* out = nullptr;
  cudaMalloc(&out, size_t(blocks) * multiprocessors * threads * sizeof(float));
  cudaEvent_t start, end;
  cudaEventCreate(&start);
  cudaEventCreate(&end);
  float best = 1e9f;
  for (int run = 0; run < 5; ++run) {
    cudaEventRecord(start);
    loop<<<blocks * multiprocessors, threads>>>(out);
    cudaEventRecord(end);
    cudaEventSynchronize(end);
    float milliseconds = 0;
    cudaEventElapsedTime(&milliseconds, start, end);
    best = std::min(best, milliseconds);
  }
  const double warps = double(blocks) * multiprocessors * threads / 32;
  std::printf("%.1f (%s)\n", warps * independent * repeats * operations / best / 1e9,
              cudaGetErrorString(cudaGetLastError()));
}
