// The CPU implementations of the ops: threads over ranges of elements.
#include "../ops.h"
#include "kernels.h"

#include <cstdlib>
#include <memory>

namespace taylorderiv {

template <>
const CpuKernels<float>& cpu_kernels<float>() {
#ifdef TD_X86
  if (best_instruction_set() == InstructionSet::avx512) return kernels_avx512_f32;
  if (best_instruction_set() == InstructionSet::avx2) return kernels_avx2_f32;
#endif
  return kernels_baseline_f32;
}

template <>
const CpuKernels<double>& cpu_kernels<double>() {
#ifdef TD_X86
  if (best_instruction_set() == InstructionSet::avx512) return kernels_avx512_f64;
  if (best_instruction_set() == InstructionSet::avx2) return kernels_avx2_f64;
#endif
  return kernels_baseline_f64;
}

namespace {

// Runs f(range, scratch) on all elements of (C, ...) coefficients, on PyTorch's threads.
template <class F>
void parallel(const Tensor& x, const LayoutView& layout, const F& f) {
  const int64_t elements = x.numel() / layout.size();
  // Chunks are whole cache lines, and large enough to be worth a thread: about 30 us of work.
  const int64_t block = 64, blocks = (elements + block - 1) / block;
  const int64_t grain = 1 + 16384 / (block * layout.size());
  torch::stable::parallel_for(0, blocks, grain, [&](int64_t begin, int64_t end) {
    const int64_t bytes = cpu_scratch_bytes(layout);
    const std::unique_ptr<void, decltype(&std::free)> scratch(std::aligned_alloc(64, (bytes + 63) / 64 * 64),
                                                              &std::free);
    f(Range{elements, begin * block, end * block < elements ? end * block : elements}, scratch.get());
  });
}

struct Cpu {
  using Params = std::vector<double>;

  static void forward(int op, const Params& params, const LayoutView& layout, const Tensor& x, const Tensor& y) {
    with_scalar(x, [&](auto scalar) {
      using S = decltype(scalar);
      parallel(x, layout, [&](Range range, void* scratch) {
        cpu_kernels<S>().forward[op](params.data(), layout, range, x.const_data_ptr<S>(), y.mutable_data_ptr<S>(),
                                     scratch);
      });
    });
  }

  static void backward(int op, const Params& params, const LayoutView& layout, const Tensor& grad, const Tensor& x,
                       const Tensor& dx) {
    with_scalar(x, [&](auto scalar) {
      using S = decltype(scalar);
      parallel(x, layout, [&](Range range, void* scratch) {
        cpu_kernels<S>().backward[op](params.data(), layout, range, grad.const_data_ptr<S>(), x.const_data_ptr<S>(),
                                      dx.mutable_data_ptr<S>(), scratch);
      });
    });
  }

  static void double_backward(int op, const Params& params, const LayoutView& layout, const Tensor& grad_grad,
                              const Tensor& grad, const Tensor& x, const Tensor& dgrad, const Tensor& dx) {
    with_scalar(x, [&](auto scalar) {
      using S = decltype(scalar);
      parallel(x, layout, [&](Range range, void* scratch) {
        cpu_double_backward<S>(op)(params.data(), layout, range, grad_grad.const_data_ptr<S>(),
                                   grad.const_data_ptr<S>(), x.const_data_ptr<S>(), dgrad.mutable_data_ptr<S>(),
                                   dx.mutable_data_ptr<S>(), scratch);
      });
    });
  }

  static void cauchy(const LayoutView& layout, const Tensor& a, const Tensor& b, const Tensor& y) {
    product(layout, a, b, y, [](const auto& kernels) { return kernels.cauchy; });
  }

  static void correlate(const LayoutView& layout, const Tensor& b, const Tensor& grad, const Tensor& da) {
    product(layout, b, grad, da, [](const auto& kernels) { return kernels.correlate; });
  }

 private:
  template <class Member>
  static void product(const LayoutView& layout, const Tensor& a, const Tensor& b, const Tensor& y, Member member) {
    with_scalar(a, [&](auto scalar) {
      using S = decltype(scalar);
      parallel(a, layout, [&](Range range, void* scratch) {
        member(cpu_kernels<S>())(layout, range, a.const_data_ptr<S>(), b.const_data_ptr<S>(), y.mutable_data_ptr<S>(),
                                 scratch);
      });
    });
  }
};

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(taylorderiv, CPU, m) { implement_ops<Cpu>(m); }

}  // namespace taylorderiv
