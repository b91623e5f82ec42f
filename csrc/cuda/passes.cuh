// What a kernel does to one element: the functions of propagate.h in one shape.
//
// A pass offers run<Orders, local>(layout, io, scratch) with io.load(n), io.store(n) for its inputs and outputs, and
//   Number<S>, Careful<S>  what it computes in, coefficients being read as S, and that for elements that aren't finite
//                          and for orders without unrolled code;
//   Scratch<S>             the latter's scratch memory holds such numbers, and `aux` determines its size;
//   series                 how many series are live at once, which limits the width of memory accesses;
//   unrolled               whether there is unrolled code.
#pragma once

#include "../propagate.h"

TD_NAMESPACE_BEGIN

template <class Op_>
struct UnaryPass {
  using Op = Op_;
  template <class S>
  using Number = Compute<Op, S>;
  template <class S>
  using Careful = taylorderiv::Careful<Compute<Op, S>>;
  template <class S>
  using Scratch = Careful<S>;
  static constexpr int aux = Op::aux;
  static constexpr bool unrolled = !Op::local_only;
  Op op;
  TD_HD explicit UnaryPass(const double* params) : op(params) {}
};

template <class Op>
struct Forward : UnaryPass<Op> {
  static constexpr int series = Op::piecewise_linear ? 2 : 4 + Op::aux;
  using UnaryPass<Op>::UnaryPass;
  template <class Orders, bool local, class L, class Io, class A>
  TD_HD auto run(const L& layout, const Io& io, A scratch) const {
    return unary_forward<Orders, local>(this->op, layout, io.load(0), io.store(0), scratch);
  }
};

template <class Op>
struct Backward : UnaryPass<Op> {
  static constexpr int series = Op::piecewise_linear ? 2 : 5 + Op::aux;
  using UnaryPass<Op>::UnaryPass;
  template <class Orders, bool local, class L, class Io, class A>
  TD_HD auto run(const L& layout, const Io& io, A scratch) const {
    return unary_backward<Orders, local>(this->op, layout, io.load(1), io.load(0), io.store(0), scratch);
  }
};

template <class Op>
struct DoubleBackward : UnaryPass<Op> {
  template <class S>
  using Scratch = Dual<typename UnaryPass<Op>::template Careful<S>>;
  static constexpr bool unrolled = false;  // right, not fast
  using UnaryPass<Op>::UnaryPass;
  template <class Orders, bool local, class L, class Io, class A>
  TD_HD auto run(const L& layout, const Io& io, A scratch) const {
    return unary_double_backward<Orders, local>(this->op, layout, io.load(0), io.load(1), io.load(2), io.store(0),
                                                io.store(1), scratch);
  }
};

// Products of finite numbers need no care.
struct Product {
  using Op = void;
  template <class S>
  using Number = S;
  template <class S>
  using Careful = S;
  template <class S>
  using Scratch = S;
  static constexpr int aux = 0, series = 3;
  static constexpr bool unrolled = true;
  TD_HD explicit Product(const double*) {}
};

struct Cauchy : Product {
  using Product::Product;
  template <class Orders, bool local, class L, class Io, class A>
  TD_HD void run(const L& layout, const Io& io, A scratch) const {
    cauchy_forward<Orders>(layout, io.load(0), io.load(1), io.store(0), scratch);
  }
};

struct Correlate : Product {
  using Product::Product;
  template <class Orders, bool local, class L, class Io, class A>
  TD_HD void run(const L& layout, const Io& io, A scratch) const {
    correlate<Orders>(layout, io.load(0), io.load(1), io.store(0), scratch);
  }
};

TD_NAMESPACE_END
