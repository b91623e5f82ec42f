// The ops' schemas and the module taylorderiv._C, which says what this build holds.
#include "cpu/kernels.h"
#include "ops.h"

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <map>

STABLE_TORCH_LIBRARY(taylorderiv, m) {
  taylorderiv::define_ops(m);
  m.def(
      "chain(Tensor x, Tensor higher, Tensor[] weights, Tensor[] biases, str[] ops, float[] params, int[] orders,"
      " float[] collapse, bool save) -> (Tensor, Tensor)");
  m.def(
      "chain_backward(Tensor grad, Tensor x, Tensor higher, Tensor saved, Tensor[] weights, Tensor[] biases,"
      " str[] ops, float[] params, int[] orders, float[] collapse, bool input_gradient) -> Tensor[]");
}

namespace {

namespace py = pybind11;
using namespace taylorderiv;

std::vector<std::string> unary_ops() {
  std::vector<std::string> names;
  for (int i = 0; i < unary_op_count; ++i) names.emplace_back(unary_op_infos[i].name);
  return names;
}

std::map<std::string, int> unary_params() {
  std::map<std::string, int> counts;
  for (int i = 0; i < unary_op_count; ++i) counts[unary_op_infos[i].name] = unary_op_infos[i].params;
  return counts;
}

std::vector<int> compiled_orders() {
  const int* const orders = cpu_kernels<float>().compiled_orders;
  return {orders, std::find(orders, orders + 100, 0)};
}

py::dict build_info() {
  py::dict info;
#ifdef TD_X86
  info["instruction_sets"] = std::vector<std::string>{"baseline", "avx2", "avx512"};
#else
  info["instruction_sets"] = std::vector<std::string>{"baseline"};
#endif
  info["instruction_set"] = name_of(best_instruction_set());
#ifdef TD_CUDA_ARCHITECTURES
  info["cuda"] = true;
  info["cuda_architectures"] = TD_CUDA_ARCHITECTURES;
#else
  info["cuda"] = false;
#endif
  info["compiler"] = __VERSION__;
  return info;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "The compiled part of taylorderiv. Importing it registers the ops torch.ops.taylorderiv.*.";
  m.def("unary_ops", &unary_ops, "Names of the unary ops with a kernel.");
  m.def("unary_params", &unary_params, "How many parameters each unary op takes.");
  m.def("compiled_orders", &compiled_orders,
        "Orders with unrolled code on this machine; orders in between are padded, higher ones use a loop.");
  m.def("build_info", &build_info, "What was compiled in, and which instruction set is in use.");
}
