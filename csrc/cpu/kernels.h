// The CPU kernels as a table of functions, one table per instruction set. No PyTorch here: pointers and sizes.
#pragma once

#include <cstdint>

#include "../layout_view.h"

namespace taylorderiv {

// Work on elements [begin, end) of tensors whose coefficient c of element i stands at [c * stride + i]. Unless `row` is
// 0, of every `row` elements only the first `filled`, whole vectors, are wanted; what becomes of the others is all the
// same.
struct Range {
  int64_t stride, begin, end, row = 0, filled = 0;
};

template <class S>
struct CpuKernels {
  using Forward = void (*)(const double* params, const LayoutView&, Range, const S* x, S* y, void* scratch);
  // Writes the forward pass's result, too, unless y is null.
  using Backward = void (*)(const double* params, const LayoutView&, Range, const S* grad, const S* x, S* dx, S* y,
                            void* scratch);
  using DoubleBackward = void (*)(const double* params, const LayoutView&, Range, const S* grad_grad, const S* grad,
                                  const S* x, S* dgrad, S* dx, void* scratch);
  using Product = void (*)(const LayoutView&, Range, const S* a, const S* b, S* y, void* scratch);

  const Forward* forward;    // indexed by op
  const Backward* backward;  // indexed by op
  Product cauchy, correlate;
  const int* compiled_orders;  // ascending, ended by 0: unrolled code; other orders are padded or, above, use a loop
};

// C (rows x columns, columns a multiple of the vector length) = or += A B, with A(m, k) at a[m a_row + k a_depth].
// B comes in panels of CpuGemm::panel columns, b_panel apart, within which B(k, n) is at [k b_row + n]. To the first
// `biased` rows a bias is added.
struct GemmShape {
  int64_t rows, columns, depth, a_row, a_depth, b_row, b_panel, c_row;
  bool accumulate;
  int64_t biased;
  const void* soon = nullptr;  // memory that will be read or written soon: so much of it is fetched meanwhile
  int64_t soon_bytes = 0;
};

template <class S>
struct CpuGemm {
  void (*multiply)(const GemmShape&, const S* a, const S* b, S* c, const S* bias);
  // The same for a few columns, fewer than a vector has, and a depth in whole vectors, with B(k, n) at [n depth + k];
  // the rest of C's vectors becomes 0.
  void (*multiply_narrow)(const GemmShape&, const S* a, const S* b, S* c, const S* bias);
  // Adds the sum of n rows, `row` apart, of whole vectors: summed first, as one long sum over all points would lose
  // digits.
  void (*add_rows)(int64_t n, int64_t columns, int64_t row, const S* rows, S* to);
  int lanes;  // numbers in a SIMD vector
  int panel;  // columns of B that are in registers at once
};

// The kernels of any processor, in which exact zeros annihilate infinities (careful.h).
template <class S>
const CpuKernels<S>& careful_kernels();

extern const CpuKernels<float> kernels_baseline_f32;
extern const CpuKernels<double> kernels_baseline_f64;
extern const CpuGemm<float> gemm_baseline_f32;
extern const CpuGemm<double> gemm_baseline_f64;
#ifdef TD_X86
extern const CpuGemm<float> gemm_avx2_f32, gemm_avx512_f32;
extern const CpuGemm<double> gemm_avx2_f64, gemm_avx512_f64;
extern const CpuKernels<float> kernels_avx2_f32, kernels_avx512_f32;
extern const CpuKernels<double> kernels_avx2_f64, kernels_avx512_f64;
#endif

// The double backward has one instantiation only: right, not fast.
template <class S>
typename CpuKernels<S>::DoubleBackward cpu_double_backward(int op);

// Bytes of scratch memory that one thread needs, for any kernel and instruction set.
int64_t cpu_scratch_bytes(const LayoutView&);

enum class InstructionSet { baseline, avx2, avx512 };
const char* name_of(InstructionSet);
InstructionSet best_instruction_set();

// Of the tables of one name and type, that of the best instruction set that this machine has.
template <class Table>
const Table& best_of(const Table* baseline, const Table* avx2, const Table* avx512) {
  const InstructionSet best = best_instruction_set();
  return *(best == InstructionSet::avx512 ? avx512 : best == InstructionSet::avx2 ? avx2 : baseline);
}
#if defined(TD_AVX512)
#define TD_BEST_OF(name, type) best_of(&name##_baseline_##type, &name##_avx2_##type, &name##_avx512_##type)
#elif defined(TD_X86)
#define TD_BEST_OF(name, type) best_of(&name##_baseline_##type, &name##_avx2_##type, {})
#else
#define TD_BEST_OF(name, type) best_of(&name##_baseline_##type, {}, {})
#endif

template <class S>
const CpuKernels<S>& cpu_kernels();
template <class S>
const CpuGemm<S>& cpu_gemm();

}  // namespace taylorderiv
