// The elementwise ops, over a backend that does the work once the arguments are checked. PyTorch's stable ABI only.
//
// A backend offers static functions
//   forward(op, params, layout, x, y)                            backward(op, params, layout, grad, x, dx)
//   double_backward(op, params, layout, grad_grad, grad, x, dgrad, dx)
//   cauchy(layout, a, b, y)                                      correlate(layout, b, grad, da)
// with op the index of a unary op; all tensors fit the layout (check_coefficients()), the last ones receive the result.
#pragma once

#include "arguments.h"

#include <tuple>

namespace taylorderiv {

template <class Backend>
struct Ops {
  using Numbers = std::vector<double>;
  using Orders = std::vector<int64_t>;

  static Tensor unary(Tensor x, std::string op, Numbers params, Orders orders, Numbers weights) {
    const CheckedLayout layout(std::move(orders), std::move(weights));
    const int index = unary_op_index(op, params);
    check_coefficients("x", x, x, layout);
    Tensor y = new_tensor(x, x.sizes());
    Backend::forward(index, params, layout.view, x, y);
    return y;
  }

  static Tensor unary_backward(Tensor grad, Tensor x, std::string op, Numbers params, Orders orders, Numbers weights) {
    const CheckedLayout layout(std::move(orders), std::move(weights));
    const int index = unary_op_index(op, params);
    check_coefficients("x", x, x, layout);
    check_coefficients("grad", grad, x, layout);
    Tensor dx = new_tensor(x, x.sizes());
    Backend::backward(index, params, layout.view, grad, x, dx);
    return dx;
  }

  static std::tuple<Tensor, Tensor> unary_double_backward(Tensor grad_grad, Tensor grad, Tensor x, std::string op,
                                                          Numbers params, Orders orders, Numbers weights) {
    const CheckedLayout layout(std::move(orders), std::move(weights));
    const int index = unary_op_index(op, params);
    check_coefficients("x", x, x, layout);
    check_coefficients("grad", grad, x, layout);
    check_coefficients("grad_grad", grad_grad, x, layout);
    Tensor dgrad = new_tensor(x, x.sizes()), dx = new_tensor(x, x.sizes());
    Backend::double_backward(index, params, layout.view, grad_grad, grad, x, dgrad, dx);
    return {dgrad, dx};
  }

  static Tensor cauchy(Tensor a, Tensor b, Orders orders, Numbers weights) {
    const CheckedLayout layout(std::move(orders), std::move(weights));
    check_coefficients("a", a, a, layout);
    check_coefficients("b", b, a, layout);
    Tensor y = new_tensor(a, a.sizes());
    Backend::cauchy(layout.view, a, b, y);
    return y;
  }

  static Tensor correlate(Tensor b, Tensor grad, Orders orders, Numbers weights) {
    const CheckedLayout layout(std::move(orders), std::move(weights));
    check_coefficients("b", b, b, layout);
    check_coefficients("grad", grad, b, layout);
    Tensor da = new_tensor(b, b.sizes());
    Backend::correlate(layout.view, b, grad, da);
    return da;
  }
};

inline void define_ops(torch::stable::detail::StableLibrary& m) {
  m.def("unary(Tensor x, str op, float[] params, int[] orders, float[] weights) -> Tensor");
  m.def(
      "unary_backward(Tensor grad, Tensor x, str op, float[] params, int[] orders, float[] weights)"
      " -> Tensor");
  m.def(
      "unary_double_backward(Tensor grad_grad, Tensor grad, Tensor x, str op, float[] params, int[] orders,"
      " float[] weights) -> (Tensor, Tensor)");
  m.def("cauchy(Tensor a, Tensor b, int[] orders, float[] weights) -> Tensor");
  m.def("correlate(Tensor b, Tensor grad, int[] orders, float[] weights) -> Tensor");
}

template <class Backend>
void implement_ops(torch::stable::detail::StableLibrary& m) {
  m.impl("unary", TORCH_BOX(&Ops<Backend>::unary));
  m.impl("unary_backward", TORCH_BOX(&Ops<Backend>::unary_backward));
  m.impl("unary_double_backward", TORCH_BOX(&Ops<Backend>::unary_double_backward));
  m.impl("cauchy", TORCH_BOX(&Ops<Backend>::cauchy));
  m.impl("correlate", TORCH_BOX(&Ops<Backend>::correlate));
}

}  // namespace taylorderiv
