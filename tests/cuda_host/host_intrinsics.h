// What csrc/cuda/intrinsics.cuh declares, for threads that run in turns on the host.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <cstring>

namespace host_run {

// Ends the process.
[[noreturn]] void fail(const char* message);

// The block's dynamic shared memory.
void* shared_memory();

// A warp's 32 threads each put in `bytes` and wait for each other: then all see what the others put in.
struct Exchange {
  static constexpr int most_bytes = 48;
  alignas(16) unsigned char of[32][most_bytes];
};
const Exchange& exchange(const void* mine, int bytes);

// Copies of a thread that are on their way, in groups. They are done as late as the thread's waiting allows, or, if
// state.early_copies, at once: the hardware may do either.
void start_copy(void* to, const void* from, int bytes);
void close_group_of_copies();
void wait_for_copies(int groups_still_on_their_way);

}  // namespace host_run

namespace taylorderiv {

void mma_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);
void set_to_mma_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);
uint32_t rounded_to_tf32(float x);
void mma_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);
void set_to_mma_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);
uint32_t two_bf16(float first, float second);
void load_matrices(uint32_t (&d)[4], const void* row);
void load_matrices_transposed(uint32_t (&d)[4], const void* row);
void store_matrices(void* row, const uint32_t (&d)[4]);
void mma_f16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);
void mma_f64(double (&d)[4], const double (&a)[4], const double (&b)[2]);
template <int bytes>
void copy_async(void* to_shared, const void* from_global) {
  host_run::start_copy(to_shared, from_global, bytes);
}
template <int offset_in_shared, int offset_in_global>
void copy_16_bytes_async(void* to_shared, const void* from_global) {
  host_run::start_copy(static_cast<char*>(to_shared) + offset_in_shared,
                       static_cast<const char*>(from_global) + offset_in_global, 16);
}
inline void close_group_of_copies() { host_run::close_group_of_copies(); }
template <int groups_still_on_their_way>
void wait_for_copies() {
  host_run::wait_for_copies(groups_still_on_their_way);
}
template <class T>
T shuffled(T x, int mask) {
  T other;
  std::memcpy(&other, host_run::exchange(&x, sizeof(x)).of[threadIdx.x % 32 ^ mask], sizeof(other));
  return other;
}
template <class Number>
void add_in_memory(Number* to, Number x) {
  *to += x;
}
template <class Number>
void add_in_memory(Number* to, const Number (&x)[4]) {
  for (int i = 0; i < 4; ++i) to[i] += x[i];
}
inline void* shared_memory() { return host_run::shared_memory(); }
template <class T>
T* in_shared_memory(T* p) {
  return p;
}
template <class T>
T* in_global_memory(T* p) {
  return p;
}

}  // namespace taylorderiv

#define TD_TRACE \
  if (threadIdx.x == 0 && host_run::state.entered) host_run::state.entered(__PRETTY_FUNCTION__)
