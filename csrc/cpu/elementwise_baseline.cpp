// The kernels for any processor, and what needs no speed: the double backward and the list of ops.
#define TD_VARIANT baseline
#include "elementwise.h"

#include <cstdlib>
#include <initializer_list>

TD_NAMESPACE_BEGIN

// The recurrence, then by local() where that breaks down: run(local) does one and says whether it needs care.
template <class Op, class Run>
void with_care(const Run& run) {
  if constexpr (Op::local_only) {
    run(std::true_type{});
  } else {
    const bool care = run(std::false_type{});
    if constexpr (Op::singular) {
      if (care) run(std::true_type{});
    }
  }
}

template <class Op, int, class S>
void forward(const double* params, const CpuLayout& layout, Range range, const S* x, S* y, void* scratch) {
  using C = Compute<Op, S>;
  const Op op(params);
  for (int64_t i = range.begin; i < range.end; ++i) {
    Number<C> not_finite(0.0);
    with_care<Op>([&](auto local) {
      return unary_forward<LoopOrders, local.value>(op, layout, Loader<C, S>{x + i, range.stride},
                                                    Storer<C, S>{y + i, range.stride, &not_finite},
                                                    workspace<C, S>(layout, scratch));
    });
  }
}

template <class Op, int, class S>
void backward(const double* params, const CpuLayout& layout, Range range, const S* grad, const S* x, S* dx,
              void* scratch) {
  using C = Compute<Op, S>;
  const Op op(params);
  for (int64_t i = range.begin; i < range.end; ++i) {
    Number<C> not_finite(0.0);
    with_care<Op>([&](auto local) {
      return unary_backward<LoopOrders, local.value>(
          op, layout, Loader<C, S>{x + i, range.stride}, Loader<C, S>{grad + i, range.stride},
          Storer<C, S>{dx + i, range.stride, &not_finite}, workspace<C, S>(layout, scratch));
    });
  }
}

// Coefficients and their tangents; a null tangent stands for zeros.
template <class C, class S>
struct DualLoader {
  const S *value, *tangent;
  int64_t stride;
  Dual<Careful<C>> operator()(int c) const {
    return {load_number<C>(value + c * stride), tangent ? load_number<C>(tangent + c * stride) : Careful<C>(0.0)};
  }
};
template <class C, class S>
struct TangentStorer {
  S* p;
  int64_t stride;
  void operator()(int c, Dual<Careful<C>> v) const { store_number(p + c * stride, v.d); }
};

// The gradient of <grad_grad, dx(grad, x)>: in grad it is the tangent of y along grad_grad, and, the second derivative
// of <grad, y(x)> being symmetric, in x it is the tangent of dx along grad_grad.
template <class Op, class S>
void double_backward(const double* params, const CpuLayout& layout, Range range, const S* grad_grad, const S* grad,
                     const S* x, S* dgrad, S* dx, void* scratch) {
  using C = Compute<Op, S>;
  const Op op(params);
  auto* const work = static_cast<Dual<Careful<C>>*>(scratch);
  for (int64_t i = range.begin; i < range.end; ++i) {
    const DualLoader<C, S> load_x{x + i, grad_grad + i, range.stride}, load_grad{grad + i, nullptr, range.stride};
    with_care<Op>([&](auto local) {
      unary_forward<LoopOrders, local.value>(op, layout, load_x, TangentStorer<C, S>{dgrad + i, range.stride}, work);
      return unary_backward<LoopOrders, local.value>(op, layout, load_x, load_grad,
                                                     TangentStorer<C, S>{dx + i, range.stride}, work);
    });
  }
}

TD_NAMESPACE_END

#define TD_SCALAR float
TD_DEFINE_KERNELS(kernels_baseline_f32)
#undef TD_SCALAR
#define TD_SCALAR double
TD_DEFINE_KERNELS(kernels_baseline_f64)

namespace taylorderiv {

template <>
const CpuKernels<float>& careful_kernels<float>() {
  return kernels_baseline_f32;
}
template <>
const CpuKernels<double>& careful_kernels<double>() {
  return kernels_baseline_f64;
}

#define TD_INFO(Op) {Op::name, Op::params},
const UnaryOpInfo unary_op_infos[] = {TD_UNARY_OPS(TD_INFO)};
const int unary_op_count = int(sizeof(unary_op_infos) / sizeof(unary_op_infos[0]));

#define TD_DOUBLE_BACKWARD_F32(Op) &double_backward<Op, float>,
#define TD_DOUBLE_BACKWARD_F64(Op) &double_backward<Op, double>,
static const CpuKernels<float>::DoubleBackward table_f32[] = {TD_UNARY_OPS(TD_DOUBLE_BACKWARD_F32)};
static const CpuKernels<double>::DoubleBackward table_f64[] = {TD_UNARY_OPS(TD_DOUBLE_BACKWARD_F64)};
const CpuKernels<float>::DoubleBackward* const double_backward_f32 = table_f32;
const CpuKernels<double>::DoubleBackward* const double_backward_f64 = table_f64;

int64_t cpu_scratch_bytes(const CpuLayout& layout) {
  // Three copies of a last vector, then a workspace, both of at most 64-byte vectors.
  return 64 * (3 * int64_t(layout.size()) + scratch_size(layout.max_order()));
}

const char* name_of(InstructionSet isa) {
  return isa == InstructionSet::avx512 ? "avx512" : isa == InstructionSet::avx2 ? "avx2" : "baseline";
}

static InstructionSet detect_instruction_set() {
  InstructionSet best = InstructionSet::baseline;
#ifdef TD_X86
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2")) {
    best = InstructionSet::avx2;
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512bw")) {
      best = InstructionSet::avx512;
    }
  }
#endif
  // For tests, and to see what a lesser machine would do; a better one than there is can't be asked for.
  if (const char* wanted = std::getenv("TAYLORDERIV_INSTRUCTION_SET")) {
    for (const auto isa : {InstructionSet::baseline, InstructionSet::avx2}) {
      if (std::strcmp(wanted, name_of(isa)) == 0 && isa < best) best = isa;
    }
  }
  return best;
}

InstructionSet best_instruction_set() {
  static const InstructionSet best = detect_instruction_set();
  return best;
}

}  // namespace taylorderiv
