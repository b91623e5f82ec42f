// The CPU implementations of the ops: threads over ranges of elements.
#include "../ops.h"
#include "kernels.h"

#include <algorithm>
#include <array>
#include <cstdlib>
#include <cstring>
#include <memory>

namespace taylorderiv {

template <>
const CpuKernels<float>& cpu_kernels<float>() {
  return TD_BEST_OF(kernels, f32);
}
template <>
const CpuKernels<double>& cpu_kernels<double>() {
  return TD_BEST_OF(kernels, f64);
}

namespace {

// Rows of coefficients, far apart, of all tensors: if there are more, they're copied together first, as the processor
// can't read ahead in so many places, and their addresses often compete for the same few lines of its cache. Measured.
constexpr int64_t most_rows = 64;

struct Free {
  void operator()(void* p) const { std::free(p); }
};
std::unique_ptr<void, Free> allocate(int64_t bytes) {
  return std::unique_ptr<void, Free>(std::aligned_alloc(64, (bytes + 63) / 64 * 64));
}

// Between n elements of C rows, one `from_stride` after the other, and rows `to_stride` apart.
template <class S>
void copy_rows(int64_t rows, int64_t n, const S* from, int64_t from_stride, S* to, int64_t to_stride) {
  for (int64_t c = 0; c < rows; ++c) std::memcpy(to + c * to_stride, from + c * from_stride, n * sizeof(S));
}

// Runs f(range, inputs, output, scratch) on all elements of (C, ...) coefficients, on PyTorch's threads.
template <class S, size_t inputs, class F>
void parallel(const LayoutView& layout, const std::array<const Tensor*, inputs>& in, const Tensor& out, const F& f) {
  const int64_t rows = layout.size(), elements = out.numel() / rows;
  std::array<const S*, inputs> x;
  for (size_t i = 0; i < inputs; ++i) x[i] = in[i]->template const_data_ptr<S>();
  S* const y = out.template mutable_data_ptr<S>();
  // Chunks are whole cache lines, and large enough to be worth a thread: about 30 us of work.
  const int64_t line = 64, lines = (elements + line - 1) / line;
  const int64_t grain = 1 + 16384 / (line * rows);
  torch::stable::parallel_for(0, lines, grain, [&](int64_t first, int64_t last) {
    const int64_t begin = first * line, end = std::min(last * line, elements);
    const auto scratch = allocate(cpu_scratch_bytes(layout));
    if ((inputs + 1) * rows <= most_rows) return f(Range{elements, begin, end}, x, y, scratch.get());
    const int64_t block = std::max(line, 16384 / rows / line * line), stride = block + line / 4;  // in the L2 cache
    const auto staged = allocate((inputs + 1) * rows * stride * sizeof(S));
    std::array<const S*, inputs> from;
    S* to = static_cast<S*>(staged.get());
    for (int64_t at = begin; at < end; at += block) {
      const int64_t n = std::min(block, end - at);
      S* next = to;
      for (size_t i = 0; i < inputs; ++i) {
        copy_rows(rows, n, x[i] + at, elements, next += rows * stride, stride);
        from[i] = next;
      }
      f(Range{stride, 0, n}, from, to, scratch.get());
      copy_rows<S>(rows, n, to, stride, y + at, elements);
    }
  });
}

struct Cpu {
  using Params = std::vector<double>;

  static void forward(int op, const Params& params, const LayoutView& layout, const Tensor& x, const Tensor& y) {
    with_scalar(x, [&](auto scalar) {
      using S = decltype(scalar);
      parallel<S, 1>(layout, {&x}, y, [&](Range range, const auto& in, S* out, void* scratch) {
        cpu_kernels<S>().forward[op](params.data(), layout, range, in[0], out, scratch);
      });
    });
  }

  static void backward(int op, const Params& params, const LayoutView& layout, const Tensor& grad, const Tensor& x,
                       const Tensor& dx) {
    with_scalar(x, [&](auto scalar) {
      using S = decltype(scalar);
      parallel<S, 2>(layout, {&grad, &x}, dx, [&](Range range, const auto& in, S* out, void* scratch) {
        cpu_kernels<S>().backward[op](params.data(), layout, range, in[0], in[1], out, nullptr, scratch);
      });
    });
  }

  static void double_backward(int op, const Params& params, const LayoutView& layout, const Tensor& grad_grad,
                              const Tensor& grad, const Tensor& x, const Tensor& dgrad, const Tensor& dx) {
    with_scalar(x, [&](auto scalar) {
      using S = decltype(scalar);
      const int64_t elements = x.numel() / layout.size();
      torch::stable::parallel_for(0, elements, 1 + 1024 / layout.size(), [&](int64_t begin, int64_t end) {
        const auto scratch = allocate(cpu_scratch_bytes(layout));
        cpu_double_backward<S>(op)(params.data(), layout, Range{elements, begin, end}, grad_grad.const_data_ptr<S>(),
                                   grad.const_data_ptr<S>(), x.const_data_ptr<S>(), dgrad.mutable_data_ptr<S>(),
                                   dx.mutable_data_ptr<S>(), scratch.get());
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
      parallel<S, 2>(layout, {&a, &b}, y, [&](Range range, const auto& in, S* out, void* scratch) {
        member(cpu_kernels<S>())(layout, range, in[0], in[1], out, scratch);
      });
    });
  }
};

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(taylorderiv, CPU, m) { implement_ops<Cpu>(m); }

}  // namespace taylorderiv
