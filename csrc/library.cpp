// The ops' schemas and the module taylorderiv._C, which says what this build holds.
#include "chain_arguments.h"
#include "cpu/kernels.h"
#include "cuda/chain_tiling.h"
#include "ops.h"

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <map>

STABLE_TORCH_LIBRARY(taylorderiv, m) {
  taylorderiv::define_ops(m);
  taylorderiv::define_chain_ops(m);
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

// Whether a layer can be part of a fused chain on a GPU with so much shared memory for a block.
bool cuda_chain_fits(int coefficients, int64_t in, int64_t out, int itemsize, int64_t shared_bytes) {
  if (out > ChainTiling::widest) return false;
  const int widest = int(std::max(out, std::min<int64_t>(in, ChainTiling::widest)));
  const int number_bytes = std::max(itemsize, int(sizeof(float)));
  return ChainTiling(coefficients, widest, number_bytes, true, 1, {1, shared_bytes, shared_bytes}).points > 0;
}

py::dict build_info() {
  py::dict info;
#if defined(TD_AVX512)
  info["instruction_sets"] = std::vector<std::string>{"baseline", "avx2", "avx512"};
#elif defined(TD_X86)
  info["instruction_sets"] = std::vector<std::string>{"baseline", "avx2"};
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
  m.def("cuda_chain_fits", &cuda_chain_fits,
        "Whether a layer can be part of a fused chain on a GPU with so much shared memory for a block.");
  m.attr("cuda_chain_layers") = ChainTiling::most_layers;
  m.def("build_info", &build_info, "What was compiled in, and which instruction set is in use.");
}
