// The host run of the CUDA kernels: the ops of csrc/cuda, registered for CPU tensors as
// torch.ops.taylorderiv_cuda_host.
#include "../../csrc/cuda/backend.h"
#include "../../csrc/cuda/chain_backend.h"

#include <cuda_runtime.h>
#include <cxxabi.h>
#include <dlfcn.h>

#include <set>

#include "host_intrinsics.h"

using namespace taylorderiv;

STABLE_TORCH_LIBRARY(taylorderiv_cuda_host, m) {
  define_ops(m);
  define_chain_ops(m);
}
STABLE_TORCH_LIBRARY_IMPL(taylorderiv_cuda_host, CPU, m) {
  implement_ops<Cuda>(m);
  implement_chain_ops(m);
}

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
std::set<std::string> entered_functions;

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

// The functions with TD_TRACE that were entered since the last call.
const char* entered() {
  static std::string text;
  text.clear();
  for (const std::string& function : entered_functions) text += function + '\n';
  entered_functions.clear();
  host_run::state.entered = [](const char* function) { entered_functions.insert(function); };
  return text.c_str();
}

// The order in which the threads of a block take turns; when asynchronous copies are done; the GPU that they run on.
void set_reversed(int reversed) { host_run::state.reversed = reversed != 0; }
void set_early_copies(int early) { host_run::state.early_copies = early != 0; }
void set_device(int multiprocessors, int shared_bytes) {
  host_run::state.multiprocessors = multiprocessors;
  host_run::state.shared_bytes = shared_bytes;
}

// d += a b by one warp, with fragments as the PTX manual has them for m16n8k8 (tf32: kind 0; float64) and m16n8k16
// (float16: 1, bfloat16: 2); numbers as registers hold them, two of 16 bits in one.
void multiply_fragments(int kind, const uint32_t (*a)[4], const uint32_t (*b)[2], float (*d)[4]) {
  blockDim = 32;
  host_run::run_block([&] {
    const unsigned l = threadIdx.x;
    kind == 0 ? mma_tf32(d[l], a[l], b[l]) : kind == 1 ? mma_f16(d[l], a[l], b[l]) : mma_bf16(d[l], a[l], b[l]);
  }, 0);
}
void multiply_double_fragments(const double (*a)[4], const double (*b)[2], double (*d)[4]) {
  blockDim = 32;
  host_run::run_block([&] { mma_f64(d[threadIdx.x], a[threadIdx.x], b[threadIdx.x]); }, 0);
}

// A warp loads four matrices of 8 by 8 numbers of 16 bits, transposed or not, which start at 4 * 8 rows of 16 bytes in
// any order, and stores them next to each other.
void move_matrices(const uint16_t* from, const int* order, int transposed, uint32_t (*loaded)[4], uint16_t* stored) {
  constexpr int numbers = 4 * 8 * 8;
  blockDim = 32;
  host_run::run_block([&] {
    const unsigned l = threadIdx.x;
    auto* const memory = static_cast<uint16_t*>(shared_memory());
    std::copy(from + l * 8, from + (l + 1) * 8, memory + l * 8);
    __syncthreads();
    const uint16_t* const row = memory + order[l] * 8;
    transposed ? load_matrices_transposed(loaded[l], row) : load_matrices(loaded[l], row);
    store_matrices(memory + numbers + l * 8, loaded[l]);
    __syncthreads();
    std::copy(memory + numbers + l * 8, memory + numbers + (l + 1) * 8, stored + l * 8);
  }, 2 * numbers * sizeof(uint16_t));
}

// A thread copies a number each in two groups, waits for all but one, or not at all, and looks.
void copy_in_two_groups(const double* from, double* seen, int waiting) {
  blockDim = 1;
  host_run::run_block([&] {
    auto* const to = static_cast<double*>(shared_memory());
    for (int i = 0; i < 2; ++i) {
      copy_async<8>(to + i, from + i);
      close_group_of_copies();
    }
    if (waiting != 0) wait_for_copies<1>();
    std::copy(to, to + 2, seen);
    wait_for_copies<0>();
  }, 2 * sizeof(double));
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
