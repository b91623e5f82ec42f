// The ops on CUDA tensors: which kernel, on the current stream, with PyTorch's memory. PyTorch's stable ABI only.
#pragma once

#include "../ops.h"
#include "kernels.h"

#include <torch/csrc/stable/accelerator.h>

#include <algorithm>
#include <initializer_list>
#include <optional>

namespace taylorderiv {

inline void* current_cuda_stream(int32_t device) {
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &stream));
  return stream;
}

// `error`: what CUDA has to say against a kernel that was to be started, or null.
inline void check_started(const char* error) {
  TD_CHECK(error == nullptr, "CUDA can't start a kernel: ", error, " (kernels were compiled for ",
           TD_CUDA_ARCHITECTURES, ")");
}

// Nothing here waits for the device, so calls can be captured in a CUDA graph.
struct Cuda {
  using Params = std::vector<double>;

  static void forward(int op, const Params& params, const LayoutView& layout, const Tensor& x, const Tensor& y) {
    run<CudaPass::forward>(op, params, layout, {&x}, {&y});
  }

  static void backward(int op, const Params& params, const LayoutView& layout, const Tensor& grad, const Tensor& x,
                       const Tensor& dx) {
    run<CudaPass::backward>(op, params, layout, {&grad, &x}, {&dx});
  }

  static void double_backward(int op, const Params& params, const LayoutView& layout, const Tensor& grad_grad,
                              const Tensor& grad, const Tensor& x, const Tensor& dgrad, const Tensor& dx) {
    run<CudaPass::double_backward>(op, params, layout, {&grad_grad, &grad, &x}, {&dgrad, &dx});
  }

  static void cauchy(const LayoutView& layout, const Tensor& a, const Tensor& b, const Tensor& y) {
    run<CudaPass::cauchy>(0, {}, layout, {&a, &b}, {&y});
  }

  static void correlate(const LayoutView& layout, const Tensor& b, const Tensor& grad, const Tensor& da) {
    run<CudaPass::correlate>(0, {}, layout, {&b, &grad}, {&da});
  }

 private:
  using Tensors = std::initializer_list<const Tensor*>;

  template <CudaPass pass>
  static const CudaVariant* variants(ScalarType dtype, int op) {
    switch (dtype) {
      case ScalarType::Float:
        return cuda_variants<pass, CudaStorage::f32>(op);
      case ScalarType::Double:
        return cuda_variants<pass, CudaStorage::f64>(op);
      case ScalarType::Half:
        return cuda_variants<pass, CudaStorage::f16>(op);
      case ScalarType::BFloat16:
        return cuda_variants<pass, CudaStorage::bf16>(op);
      default:
        fail("coefficients must be float32, float64, float16 or bfloat16");
    }
  }

  template <CudaPass pass>
  static void run(int op, const Params& params, const LayoutView& layout, Tensors in, Tensors out) {
    const Tensor& first = **in.begin();
    const CudaVariant* const kernels = variants<pass>(first.scalar_type(), op);
    const int runs = PackedLayout::count_runs(layout);
    TD_CHECK(runs <= PackedLayout::capacity, "a CUDA kernel takes directions of at most ", PackedLayout::capacity,
             " different orders or weights in a row, got ", runs);
    if (first.numel() == 0) return;
    const int32_t device = first.get_device_index();
    const torch::stable::accelerator::DeviceGuard guard(device);
    std::optional<Tensor> scratch;  // given back on return: PyTorch reuses it for later work on this stream only
    CudaCall call{PackedLayout(layout),
                  layout.max_order(),
                  {},
                  first.numel() / layout.size(),
                  {},
                  {},
                  current_cuda_stream(device),
                  [&](int64_t bytes) {
      scratch = new_tensor(first, {bytes}, ScalarType::Byte);
      return scratch->mutable_data_ptr();
    }};
    std::copy(params.begin(), params.end(), call.params.values);
    std::transform(in.begin(), in.end(), call.in, [](const Tensor* t) { return t->const_data_ptr(); });
    std::transform(out.begin(), out.end(), call.out, [](const Tensor* t) { return t->mutable_data_ptr(); });
    const char* const error = start(kernels, call);
    check_started(error);
  }
};

}  // namespace taylorderiv
