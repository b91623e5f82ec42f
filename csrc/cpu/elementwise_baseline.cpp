// The kernels for any processor, and what needs no speed: the double backward.
#define TD_VARIANT baseline
#include "elementwise.h"

#include <algorithm>
#include <cstdlib>
#include <initializer_list>

TD_NAMESPACE_BEGIN

template <class Op, int, class S>
void forward(const double* params, const LayoutView& layout, Range range, const S* x, S* y, void* scratch) {
  using C = Compute<Op, S>;
  const Op op(params);
  for (int64_t i = range.begin; i < range.end; ++i) {
    Number<C> sum(0.0);
    with_care<Op>([&](auto local) {
      return unary_forward<LoopOrders, local.value>(op, layout, Loader<C, S>{x + i, range.stride},
                                                    Storer<C, S>{y + i, range.stride, &sum},
                                                    workspace<C, S>(layout, scratch));
    });
  }
}

template <class Op, int, class S>
void backward(const double* params, const LayoutView& layout, Range range, const S* grad, const S* x, S* dx, S* y,
              void* scratch) {
  using C = Compute<Op, S>;
  const Op op(params);
  for (int64_t i = range.begin; i < range.end; ++i) {
    Number<C> sum(0.0);
    with_care<Op>([&](auto local) {
      const auto run = [&](const auto& store_y) {
        return unary_backward<LoopOrders, local.value>(
            op, layout, Loader<C, S>{x + i, range.stride}, Loader<C, S>{grad + i, range.stride},
            Storer<C, S>{dx + i, range.stride, &sum}, workspace<C, S>(layout, scratch), store_y);
      };
      return y == nullptr ? run(Nowhere{}) : run(Storer<C, S>{y + i, range.stride, &sum});
    });
  }
}

template <class Op, class S>
void double_backward(const double* params, const LayoutView& layout, Range range, const S* grad_grad, const S* grad,
                     const S* x, S* dgrad, S* dx, void* scratch) {
  using C = Compute<Op, S>;
  using Load = Loader<C, S>;
  using Store = Storer<C, S>;
  const Op op(params);
  for (int64_t i = range.begin; i < range.end; ++i) {
    Number<C> sum(0.0);
    with_care<Op>([&](auto local) {
      return unary_double_backward<LoopOrders, local.value>(
          op, layout, Load{grad_grad + i, range.stride}, Load{grad + i, range.stride}, Load{x + i, range.stride},
          Store{dgrad + i, range.stride, &sum}, Store{dx + i, range.stride, &sum},
          static_cast<Dual<Number<C>>*>(scratch));
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

#define TD_DOUBLE_BACKWARD_F32(Op) &double_backward<Op, float>,
#define TD_DOUBLE_BACKWARD_F64(Op) &double_backward<Op, double>,
template <>
CpuKernels<float>::DoubleBackward cpu_double_backward<float>(int op) {
  static constexpr CpuKernels<float>::DoubleBackward kernels[] = {TD_UNARY_OPS(TD_DOUBLE_BACKWARD_F32)};
  return kernels[op];
}
template <>
CpuKernels<double>::DoubleBackward cpu_double_backward<double>(int op) {
  static constexpr CpuKernels<double>::DoubleBackward kernels[] = {TD_UNARY_OPS(TD_DOUBLE_BACKWARD_F64)};
  return kernels[op];
}

#define TD_AUX(Op) Op::aux,
static constexpr int most_aux = std::max({TD_UNARY_OPS(TD_AUX)});

int64_t cpu_scratch_bytes(const LayoutView& layout) {
  // Four copies of a last vector, then a workspace, both of at most 64-byte vectors.
  return 64 * (4 * int64_t(layout.size()) + scratch_size(layout.max_order(), most_aux));
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
#ifdef TD_AVX512
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512bw")) {
      best = InstructionSet::avx512;
    }
#endif
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
