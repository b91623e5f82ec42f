// The host run of the CUDA kernels: the ops of csrc/cuda, registered for CPU tensors as
// torch.ops.taylorderiv_cuda_host.
#include "../../csrc/cuda/backend.h"

#include <cuda_runtime.h>
#include <cxxabi.h>
#include <dlfcn.h>

#include <set>

using namespace taylorderiv;

STABLE_TORCH_LIBRARY(taylorderiv_cuda_host, m) { define_ops(m); }
STABLE_TORCH_LIBRARY_IMPL(taylorderiv_cuda_host, CPU, m) { implement_ops<Cuda>(m); }

namespace {

std::string name_of(const void* kernel) {
  Dl_info info;
  if (dladdr(kernel, &info) == 0 || info.dli_sname == nullptr) return "unknown";
  char* const demangled = abi::__cxa_demangle(info.dli_sname, nullptr, nullptr, nullptr);
  const std::string name = demangled == nullptr ? info.dli_sname : demangled;
  std::free(demangled);
  return name;
}

const char* lines(const std::set<const void*>& kernels) {
  static std::string text;
  text.clear();
  for (const void* kernel : kernels) text += name_of(kernel) + '\n';
  return text.c_str();
}

std::set<const void*> launched_kernels;

template <CudaPass pass, CudaStorage storage>
void collect(std::set<const void*>& kernels) {
  const bool unary = pass != CudaPass::cauchy && pass != CudaPass::correlate;
  for (int op = 0; op < (unary ? unary_op_count : 1); ++op) {
    const CudaVariant* variant = cuda_variants<pass, storage>(op);
    do kernels.insert(reinterpret_cast<const void*>(variant->kernel));
    while (variant++->order != 0);
  }
}

template <CudaPass... pass>
void collect_all(std::set<const void*>& kernels) {
  (collect<pass, CudaStorage::f32>(kernels), ...);
  (collect<pass, CudaStorage::f64>(kernels), ...);
  (collect<pass, CudaStorage::f16>(kernels), ...);
  (collect<pass, CudaStorage::bf16>(kernels), ...);
}

}  // namespace

// For the tests, by ctypes. Lists of kernels are demangled names, one a line, valid until the next call.
extern "C" {

// All kernels in the tables.
const char* kernels() {
  std::set<const void*> all;
  collect_all<CudaPass::forward, CudaPass::backward, CudaPass::double_backward, CudaPass::cauchy, CudaPass::correlate>(
      all);
  return lines(all);
}

// The kernels that were launched since the last call.
const char* launched() {
  const char* const text = lines(launched_kernels);
  launched_kernels.clear();
  host_run::state.launched = [](const void* kernel) { launched_kernels.insert(kernel); };
  return text;
}

// Blocks before this one are skipped.
void set_first_block(unsigned block) { host_run::state.first_block = block; }

// How many there were in the last launch.
unsigned blocks() { return gridDim.x; }

// Whether launches fail.
void set_failing(int failing) { host_run::state.error = failing ? cudaErrorNoKernelImageForDevice : cudaSuccess; }

// What a CUDA build of PyTorch provides and a CPU build does not.
AOTITorchError aoti_torch_get_current_cuda_stream(int32_t, void** stream) {
  *stream = nullptr;
  return AOTI_TORCH_SUCCESS;
}
AOTITorchError aoti_torch_create_device_guard(int32_t, DeviceGuardHandle* guard) {
  *guard = nullptr;
  return AOTI_TORCH_SUCCESS;
}
AOTITorchError aoti_torch_delete_device_guard(DeviceGuardHandle) { return AOTI_TORCH_SUCCESS; }
}
