// Instructions that C++ has no words for. Those of a warp's matrix units: d += a b, each thread holding its part of the
// fragments; see "Matrix Fragments for mma" in the PTX manual for who holds what; mma.cuh relies on it. Copies to
// shared memory that go on while the thread does something else.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <cstring>

#ifdef TD_HOST_RUN
#include <host_intrinsics.h>  // the same functions, emulated
#else

#define TD_TRACE  // tells the host run that a function is entered

namespace taylorderiv {

// 16 x 8 += (16 x 8) (8 x 8) in TF32: float32 numbers whose last 13 bits are ignored.
__device__ __forceinline__ void mma_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// The same product, d not being added to.
__device__ __forceinline__ void set_to_mma_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%10, %10, %10, %10};"
      : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "f"(0.0f));
}

// To the nearest of these numbers.
__device__ __forceinline__ uint32_t rounded_to_tf32(float x) {
  uint32_t bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
  return bits;
}

// 16 x 8 += (16 x 16) (16 x 8) of 16-bit numbers, two in a register.
__device__ __forceinline__ void mma_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
__device__ __forceinline__ void set_to_mma_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%10, %10, %10, %10};"
      : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "f"(0.0f));
}
__device__ __forceinline__ void mma_f16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// 16 x 8 += (16 x 8) (8 x 8) in float64: one instruction from Hopper on, before it four for 8 x 8 += (8 x 4) (4 x 8).
__device__ __forceinline__ void mma_f64(double (&d)[4], const double (&a)[4], const double (&b)[2]) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm("mma.sync.aligned.m16n8k8.row.col.f64.f64.f64.f64 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+d"(d[0]), "+d"(d[1]), "+d"(d[2]), "+d"(d[3])
      : "d"(a[0]), "d"(a[1]), "d"(a[2]), "d"(a[3]), "d"(b[0]), "d"(b[1]));
#else
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    asm("mma.sync.aligned.m8n8k4.row.col.f64.f64.f64.f64 {%0, %1}, {%2}, {%3}, {%0, %1};"
        : "+d"(d[i % 2 * 2]), "+d"(d[i % 2 * 2 + 1])
        : "d"(a[i]), "d"(b[i / 2]));
  }
#endif
}

// Two numbers, rounded to the nearest of 16 bits, the first one in the lower half.
__device__ __forceinline__ uint32_t two_bf16(float first, float second) {
  uint32_t bits;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(second), "f"(first));
  return bits;
}

// Four matrices of 8 by 8 16-bit numbers in shared memory, of which thread i says where row i % 8 of matrix i / 8 is,
// 16 bytes. It receives two numbers of each: of row i / 4, or transposed, of column i / 4, those from 2 (i % 4) on.
__device__ __forceinline__ void load_matrices(uint32_t (&d)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
               : "r"(unsigned(__cvta_generic_to_shared(row))));
}
__device__ __forceinline__ void load_matrices_transposed(uint32_t (&d)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
               : "r"(unsigned(__cvta_generic_to_shared(row))));
}
// And back, to four matrices next to each other: before Hopper there was no instruction for it.
__device__ __forceinline__ void store_matrices(void* row, const uint32_t (&d)[4]) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile(
      "stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(unsigned(__cvta_generic_to_shared(row))),
      "r"(d[0]), "r"(d[1]), "r"(d[2]), "r"(d[3])
      : "memory");
#else
  const int thread = threadIdx.x % 32;
  uint32_t* const first = static_cast<uint32_t*>(row) - thread * 4 + thread;
#pragma unroll
  for (int i = 0; i < 4; ++i) first[i * 32] = d[i];
#endif
}

// The same pointer, which the compiler then knows to be one to shared or global memory.
template <class T>
__device__ __forceinline__ T* in_shared_memory(T* p) {
  __builtin_assume(__isShared(p));
  return p;
}
template <class T>
__device__ __forceinline__ T* in_global_memory(T* p) {
  __builtin_assume(__isGlobal(p));
  return p;
}

// Start to copy 4, 8 or 16 bytes; a thread's copies are in groups, which it closes, and of which all but the last few
// are done when it has waited for them. Nobody else may rely on that, and until then neither may it.
template <int bytes>
__device__ __forceinline__ void copy_async(void* to_shared, const void* from_global) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"(unsigned(__cvta_generic_to_shared(to_shared))),
               "l"(__cvta_generic_to_global(from_global)), "n"(bytes)
               : "memory");
}
template <int offset_in_shared, int offset_in_global>
__device__ __forceinline__ void copy_16_bytes_async(void* to_shared, const void* from_global) {
  asm volatile(
      "cp.async.cg.shared.global [%0 + %2], [%1 + %3], 16;" ::"r"(unsigned(__cvta_generic_to_shared(to_shared))),
      "l"(__cvta_generic_to_global(from_global)), "n"(offset_in_shared), "n"(offset_in_global)
      : "memory");
}
__device__ __forceinline__ void close_group_of_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int groups_still_on_their_way>
__device__ __forceinline__ void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(groups_still_on_their_way) : "memory");
}

// x of the warp's thread whose index differs in the bits of the mask.
template <class T>
__device__ __forceinline__ T shuffled(T x, int mask) {
  return __shfl_xor_sync(0xffffffffu, x, mask);
}

// *to += x, without waiting for what is there. Those of a thread to one place are done in their order.
__device__ __forceinline__ void add_in_memory(float* to, float x) {
  asm volatile("red.relaxed.gpu.global.add.f32 [%0], %1;" ::"l"(__cvta_generic_to_global(to)), "f"(x) : "memory");
}
__device__ __forceinline__ void add_in_memory(double* to, double x) {
  asm volatile("red.relaxed.gpu.global.add.f64 [%0], %1;" ::"l"(__cvta_generic_to_global(to)), "d"(x) : "memory");
}
// Of four adjacent numbers, aligned to as many: one instruction from Hopper on.
__device__ __forceinline__ void add_in_memory(float* to, const float (&x)[4]) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("red.relaxed.gpu.global.add.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global(to)),
               "f"(x[0]), "f"(x[1]), "f"(x[2]), "f"(x[3])
               : "memory");
#else
#pragma unroll
  for (int i = 0; i < 4; ++i) add_in_memory(to + i, x[i]);
#endif
}
__device__ __forceinline__ void add_in_memory(double* to, const double (&x)[4]) {
#pragma unroll
  for (int i = 0; i < 4; ++i) add_in_memory(to + i, x[i]);
}

// The block's shared memory, as much as the launch asks for.
__device__ __forceinline__ void* shared_memory() {
  extern __shared__ uint4 memory[];
  return memory;
}

}  // namespace taylorderiv

#endif
