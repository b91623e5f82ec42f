// Compiler vocabulary shared by host and device code.
//
// Every header below this one is compiled several times: once per CPU instruction set, once by nvcc, and once more by
// the host run of the CUDA kernels. TD_VARIANT names the current compilation and becomes part of every symbol, so that
// the linker can never replace a baseline function by one that holds AVX-512 instructions.
#pragma once

#ifndef TD_VARIANT
#define TD_VARIANT baseline
#endif

#define TD_NAMESPACE_BEGIN \
  namespace taylorderiv {  \
  inline namespace TD_VARIANT {
#define TD_NAMESPACE_END \
  }                      \
  }

#if defined(__CUDACC__)
#define TD_HD __host__ __device__ __forceinline__
#define TD_HD_COLD __host__ __device__ __noinline__
#define TD_INLINE_LAMBDA
#define TD_ROLLED _Pragma("unroll 1")
#elif defined(TD_HOST_RUN) || defined(__SANITIZE_ADDRESS__)  // where speed doesn't matter, but the compile time
#define TD_HD inline
#define TD_HD_COLD
#define TD_INLINE_LAMBDA
#define TD_ROLLED
#else
#define TD_HD inline __attribute__((always_inline))
#define TD_HD_COLD __attribute__((noinline))
#define TD_INLINE_LAMBDA __attribute__((always_inline))
#define TD_ROLLED
#endif

// What the compiler may rely on.
#if defined(__CUDA_ARCH__) || defined(__clang__)
#define TD_ASSUME(condition) __builtin_assume(condition)
#else
#define TD_ASSUME(condition) ((condition) ? void() : __builtin_unreachable())
#endif

#if defined(__clang__)
#define TD_UNROLL _Pragma("unroll")
#else
#define TD_UNROLL _Pragma("GCC unroll 16")
#endif
