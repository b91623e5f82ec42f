// The CPU implementations of the ops: threads over ranges of elements.
#include "../arguments.h"

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
void parallel(const Tensor& x, const CheckedLayout& layout, const F& f) {
  const int64_t elements = x.numel() / layout.view.size();
  // Chunks are whole cache lines, and large enough to be worth a thread: about 30 us of work.
  const int64_t block = 64, blocks = (elements + block - 1) / block;
  const int64_t grain = 1 + 16384 / (block * layout.view.size());
  torch::stable::parallel_for(0, blocks, grain, [&](int64_t begin, int64_t end) {
    const int64_t bytes = cpu_scratch_bytes(layout.view);
    const std::unique_ptr<void, decltype(&std::free)> scratch(std::aligned_alloc(64, (bytes + 63) / 64 * 64),
                                                              &std::free);
    f(Range{elements, begin * block, end * block < elements ? end * block : elements}, scratch.get());
  });
}

Tensor unary(Tensor x, std::string op, std::vector<double> params, std::vector<int64_t> orders,
             std::vector<double> weights) {
  const CheckedLayout layout(std::move(orders), std::move(weights));
  const int index = unary_op_index(op, params);
  check_coefficients("x", x, x, layout);
  Tensor y = torch::stable::empty_like(x);
  with_scalar(x, [&](auto scalar) {
    using S = decltype(scalar);
    const auto kernel = cpu_kernels<S>().forward[index];
    parallel(x, layout, [&](Range range, void* scratch) {
      kernel(params.data(), layout.view, range, x.const_data_ptr<S>(), y.mutable_data_ptr<S>(), scratch);
    });
  });
  return y;
}

Tensor unary_backward(Tensor grad, Tensor x, std::string op, std::vector<double> params, std::vector<int64_t> orders,
                      std::vector<double> weights) {
  const CheckedLayout layout(std::move(orders), std::move(weights));
  const int index = unary_op_index(op, params);
  check_coefficients("x", x, x, layout);
  check_coefficients("grad", grad, x, layout);
  Tensor dx = torch::stable::empty_like(x);
  with_scalar(x, [&](auto scalar) {
    using S = decltype(scalar);
    const auto kernel = cpu_kernels<S>().backward[index];
    parallel(x, layout, [&](Range range, void* scratch) {
      kernel(params.data(), layout.view, range, grad.const_data_ptr<S>(), x.const_data_ptr<S>(),
             dx.mutable_data_ptr<S>(), scratch);
    });
  });
  return dx;
}

template <class S>
auto double_backward_kernel(int index) {
  if constexpr (std::is_same_v<S, float>) {
    return double_backward_f32[index];
  } else {
    return double_backward_f64[index];
  }
}

std::tuple<Tensor, Tensor> unary_double_backward(Tensor grad_grad, Tensor grad, Tensor x, std::string op,
                                                 std::vector<double> params, std::vector<int64_t> orders,
                                                 std::vector<double> weights) {
  const CheckedLayout layout(std::move(orders), std::move(weights));
  const int index = unary_op_index(op, params);
  check_coefficients("x", x, x, layout);
  check_coefficients("grad", grad, x, layout);
  check_coefficients("grad_grad", grad_grad, x, layout);
  Tensor dgrad = torch::stable::empty_like(x), dx = torch::stable::empty_like(x);
  with_scalar(x, [&](auto scalar) {
    using S = decltype(scalar);
    const auto kernel = double_backward_kernel<S>(index);
    parallel(x, layout, [&](Range range, void* scratch) {
      kernel(params.data(), layout.view, range, grad_grad.const_data_ptr<S>(), grad.const_data_ptr<S>(),
             x.const_data_ptr<S>(), dgrad.mutable_data_ptr<S>(), dx.mutable_data_ptr<S>(), scratch);
    });
  });
  return {dgrad, dx};
}

// cauchy and correlate: `member` is the kernel's place in the table.
template <class Member>
Tensor product(const Tensor& a, const Tensor& b, const char* a_name, const char* b_name, const CheckedLayout& layout,
               Member member) {
  check_coefficients(a_name, a, a, layout);
  check_coefficients(b_name, b, a, layout);
  Tensor y = torch::stable::empty_like(a);
  with_scalar(a, [&](auto scalar) {
    using S = decltype(scalar);
    const auto kernel = member(cpu_kernels<S>());
    parallel(a, layout, [&](Range range, void* scratch) {
      kernel(layout.view, range, a.const_data_ptr<S>(), b.const_data_ptr<S>(), y.mutable_data_ptr<S>(), scratch);
    });
  });
  return y;
}

Tensor cauchy(Tensor a, Tensor b, std::vector<int64_t> orders, std::vector<double> weights) {
  const CheckedLayout layout(std::move(orders), std::move(weights));
  return product(a, b, "a", "b", layout, [](const auto& table) { return table.cauchy; });
}

Tensor correlate(Tensor b, Tensor grad, std::vector<int64_t> orders, std::vector<double> weights) {
  const CheckedLayout layout(std::move(orders), std::move(weights));
  return product(b, grad, "b", "grad", layout, [](const auto& table) { return table.correlate; });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(taylorderiv, CPU, m) {
  m.impl("unary", TORCH_BOX(&unary));
  m.impl("unary_backward", TORCH_BOX(&unary_backward));
  m.impl("unary_double_backward", TORCH_BOX(&unary_double_backward));
  m.impl("cauchy", TORCH_BOX(&cauchy));
  m.impl("correlate", TORCH_BOX(&correlate));
}

}  // namespace taylorderiv
