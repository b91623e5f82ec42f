// Checks shared by every backend's launchers: which op, which layout, tensors that fit. PyTorch's stable ABI only.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#ifdef __linux__
#include <sys/mman.h>
#endif

#include <cstdint>
#include <exception>
#include <optional>
#include <string>
#include <vector>

#include "check.h"
#include "layout_view.h"
#include "unary_ops.h"

namespace taylorderiv {

struct UnaryOpInfo {
  const char* name;
  int params;
};

#define TD_INFO(Op) {Op::name, Op::params},
inline constexpr UnaryOpInfo unary_op_infos[] = {TD_UNARY_OPS(TD_INFO)};
#undef TD_INFO
inline constexpr int unary_op_count = sizeof(unary_op_infos) / sizeof(unary_op_infos[0]);

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline int unary_op_index(const std::string& name) {
  for (int i = 0; i < unary_op_count; ++i) {
    if (name == unary_op_infos[i].name) return i;
  }
  fail("no kernel for the unary op '", name, "'");
}

// The index of the unary op `name`, having checked the number of its parameters.
inline int unary_op_index(const std::string& name, const std::vector<double>& params) {
  const int index = unary_op_index(name);
  TD_CHECK(int(params.size()) == unary_op_infos[index].params, "op '", name, "' takes ", unary_op_infos[index].params,
           " params, got ", params.size());
  return index;
}

// Memory that is new to the process costs more than what is written into it: the kernel clears it page by page. Pages
// of 2 MiB, where the system lets us ask for them, make that six times cheaper. Blocks from 32 MiB are always new, as
// the C library keeps no larger ones.
inline void prefer_huge_pages([[maybe_unused]] const Tensor& t) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr uintptr_t page = 1 << 21, new_bytes = 1 << 25;
  const uintptr_t bytes = uintptr_t(t.numel()) * t.element_size();
  if (!t.is_cpu() || bytes < new_bytes) return;
  const uintptr_t begin = reinterpret_cast<uintptr_t>(t.data_ptr()), end = begin + bytes;
  const uintptr_t first = (begin + page - 1) / page * page;
  madvise(reinterpret_cast<void*>(first), end / page * page - first, MADV_HUGEPAGE);  // a hint: it may fail
#endif
}

// An uninitialized tensor on the device of `like`, and of its dtype unless given.
inline Tensor new_tensor(const Tensor& like, torch::headeronly::IntHeaderOnlyArrayRef sizes,
                         std::optional<ScalarType> dtype = std::nullopt) {
  try {
    const Tensor t = torch::stable::new_empty(like, sizes, dtype);
    prefer_huge_pages(t);
    return t;
  } catch (const std::exception&) {  // which, by the stable ABI, doesn't say why
    int64_t numbers = 1;
    for (const int64_t size : sizes) numbers *= size;
    fail("out of memory: PyTorch can't allocate a tensor of ", numbers, " numbers");
  }
}

// Calls f(S{}) with S = float or double, the tensor's dtype.
template <class F>
auto with_scalar(const Tensor& t, F&& f) {
  if (t.scalar_type() == ScalarType::Float) return f(float{});
  TD_CHECK(t.scalar_type() == ScalarType::Double, "coefficients must be float32 or float64");
  return f(double{});
}

// A layout together with the lists that it points into.
struct CheckedLayout {
  std::vector<int64_t> orders;
  std::vector<double> weights;
  LayoutView view;

  CheckedLayout(std::vector<int64_t> orders_, std::vector<double> weights_)
      : orders(std::move(orders_)),
        weights(std::move(weights_)),
        view(int(orders.size()), orders.data(), weights.empty() ? nullptr : weights.data()) {
    TD_CHECK(weights.empty() || weights.size() == orders.size(), weights.size(), " weights for ", orders.size(),
             " directions");
    int64_t collapsed_order = 0;
    for (size_t r = 0; r < orders.size(); ++r) {
      TD_CHECK(orders[r] >= 1 && orders[r] <= 10000, "order ", orders[r], " is out of range, 1 to 10000 are accepted");
      if (view.weight(int(r)) == 0.0) continue;
      TD_CHECK(collapsed_order == 0 || collapsed_order == orders[r], "collapsed directions must share one order, got ",
               collapsed_order, " and ", orders[r]);
      collapsed_order = orders[r];
    }
  }
  CheckedLayout(const CheckedLayout&) = delete;
};

// That t is a contiguous (C, ...) tensor like `like` and fits the layout.
inline void check_coefficients(const char* name, const Tensor& t, const Tensor& like, const CheckedLayout& layout) {
  TD_CHECK(t.dim() >= 1 && t.size(0) == layout.view.size(), name, " must be (", layout.view.size(),
           ", ...) for this layout, but its first axis is ", t.dim() >= 1 ? t.size(0) : int64_t(0));
  TD_CHECK(t.scalar_type() == like.scalar_type() && t.numel() == like.numel(), name,
           " must have the shape and dtype of the other coefficients");
  TD_CHECK(t.device() == like.device(), name, " must be on the device of the other coefficients");
  TD_CHECK(t.is_contiguous(), name, " must be contiguous");
}

}  // namespace taylorderiv
