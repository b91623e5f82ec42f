// The ops `chain` and `chain_backward` on CUDA tensors. PyTorch's stable ABI only.
#pragma once

#include "../chain_arguments.h"
#include "backend.h"
#include "chain.h"

#include <tuple>

namespace taylorderiv {

// Nothing here waits for the device, so calls can be captured in a CUDA graph.
class CudaChainOps {
  using Tensors = std::vector<Tensor>;
  using Layers = std::vector<ChainArguments::Layer>;

 public:
  // The result, and what is saved for the backward pass, in one tensor: empty unless wanted.
  static std::tuple<Tensor, Tensors> forward(Tensor x, Tensor higher, Tensors weights, Tensors biases,
                                             std::vector<std::string> ops, std::vector<double> params,
                                             std::vector<int64_t> orders, std::vector<double> collapse, int64_t save,
                                             bool tf32) {
    const ChainArguments arguments{x, higher, weights, biases, ops, params, {orders, collapse}};
    const Layers layers = arguments.layers();
    std::vector<int64_t> sizes(x.sizes().begin(), x.sizes().end());
    sizes.back() = layers.back().out;
    Tensor y = new_tensor(x, sizes), saved = new_tensor(x, {0});
    CudaChain chain = describe(arguments, layers, x, tf32);
    if (y.numel() == 0) return {y, {saved}};
    const torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
    chain.y = y.mutable_data_ptr();
    if (save != 0) {
      const int64_t numbers = chain_saved(chain, x.get_device_index());
      saved = new_tensor(x, {std::max<int64_t>(numbers, 0)}, saved_dtype(x));
      chain.saved = saved.mutable_data_ptr();
    }
    run(&start_chain, chain, x);
    return {y, {saved}};
  }

  // The gradients of x (empty unless wanted), the weights, and the biases. What was saved may be empty.
  static Tensors backward(Tensor grad, Tensor x, Tensor higher, Tensors saved_blocks, Tensors weights, Tensors biases,
                          std::vector<std::string> ops, std::vector<double> params, std::vector<int64_t> orders,
                          std::vector<double> collapse, bool input_gradient, bool tf32) {
    const ChainArguments arguments{x, higher, weights, biases, ops, params, {orders, collapse}};
    const Layers layers = arguments.layers();
    CudaChain chain = describe(arguments, layers, x, tf32);
    TD_CHECK(grad.is_contiguous() && grad.scalar_type() == x.scalar_type() && grad.device() == x.device() &&
                 grad.numel() == x.numel() / layers[0].in * layers.back().out,
             "grad must be a contiguous tensor like the chain's result");
    Tensors gradients;
    gradients.push_back(input_gradient ? new_tensor(x, x.sizes()) : new_tensor(x, {0}));
    gradients.push_back(new_tensor(x, {0}));  // a seed's
    for (const auto* list : {&arguments.weights, &arguments.biases}) {
      for (const Tensor& t : *list) {
        gradients.push_back(chain.points == 0 ? torch::stable::new_zeros(t, t.sizes()) : new_tensor(t, t.sizes()));
      }
    }
    if (chain.points == 0) return gradients;
    const torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
    if (saved_blocks.size() != 1 || saved_blocks[0].numel() > 0) {
      TD_CHECK(saved_blocks.size() == 1, "saved must be one tensor");
      const Tensor& saved = saved_blocks[0];
      TD_CHECK(saved.is_contiguous() && saved.scalar_type() == saved_dtype(x) && saved.device() == x.device() &&
                   saved.numel() == chain_saved(chain, x.get_device_index()),
               "saved isn't what this chain saved");
      chain.saved = saved.mutable_data_ptr();
    }
    chain.grad = grad.const_data_ptr();
    if (input_gradient) chain.dx = gradients[0].mutable_data_ptr();
    for (int i = 0; i < chain.layers; ++i) {
      chain.layer[i].weight_gradient = gradients[2 + i].mutable_data_ptr();
      if (layers[i].bias != nullptr) chain.layer[i].bias_gradient = gradients[2 + layers.size() + i].mutable_data_ptr();
    }
    run(&start_chain_backward, chain, x);
    return gradients;
  }

 private:
  static ChainArithmetic arithmetic(ScalarType dtype, bool tf32) {
    switch (dtype) {
      case ScalarType::Float:
        return tf32 ? ChainArithmetic::tf32 : ChainArithmetic::f32;
      case ScalarType::Double:
        return ChainArithmetic::f64;
      case ScalarType::Half:
        return ChainArithmetic::f16;
      case ScalarType::BFloat16:
        return ChainArithmetic::bf16;
      default:
        fail("coefficients must be float32, float64, float16 or bfloat16");
    }
  }

  // That of the sums.
  static ScalarType saved_dtype(const Tensor& x) {
    return x.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  }

  // All but the results.
  static CudaChain describe(const ChainArguments& arguments, const Layers& layers, const Tensor& x, bool tf32) {
    TD_CHECK(!arguments.seeded(), "a CUDA kernel takes no seed, but all coefficients");
    const LayoutView& layout = arguments.layout.view;
    const int runs = PackedLayout::count_runs(layout);
    TD_CHECK(runs <= PackedLayout::capacity, "a CUDA kernel takes directions of at most ", PackedLayout::capacity,
             " different orders or weights in a row, got ", runs);
    TD_CHECK(layers.size() <= CudaChain::capacity, "a CUDA kernel takes chains of at most ", CudaChain::capacity,
             " layers, got ", layers.size());
    CudaChain chain{PackedLayout(layout), layout.size(), layout.max_order(), arithmetic(x.scalar_type(), tf32)};
    chain.layers = int(layers.size());
    for (size_t i = 0; i < layers.size(); ++i) {
      const auto& layer = layers[i];
      TD_CHECK(layer.out <= ChainTiling::widest, "a CUDA kernel takes chains with layers of at most ",
               ChainTiling::widest, " neurons, got ", layer.out);
      CudaChainLayer& to = chain.layer[i];
      to = {int(layer.in), int(layer.out), layer.op};
      std::copy_n(layer.params, layer.param_count, to.params.values);
      to.weight = layer.weight->const_data_ptr();
      if (layer.bias != nullptr) to.bias = layer.bias->const_data_ptr();
    }
    chain.points = x.numel() / (layout.size() * layers[0].in);
    chain.x = x.const_data_ptr();
    return chain;
  }

  template <class Start>
  static void run(Start start, CudaChain& chain, const Tensor& x) {
    const int32_t device = x.get_device_index();
    chain.stream = current_cuda_stream(device);
    std::optional<Tensor> memory;  // given back on return: PyTorch reuses it for later work on this stream only
    const char* const error = start(chain, device, [&](int64_t bytes) {
      memory = new_tensor(x, {bytes}, ScalarType::Byte);
      return memory->mutable_data_ptr();
    });
    check_started(error);
  }
};

inline void implement_chain_ops(torch::stable::detail::StableLibrary& m) {
  m.impl("chain", TORCH_BOX(&CudaChainOps::forward));
  m.impl("chain_backward", TORCH_BOX(&CudaChainOps::backward));
}

}  // namespace taylorderiv
