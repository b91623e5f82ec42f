// Which coefficient stands where in a (C, ...) tensor; the C++ view of taylorderiv/layout.py.
#pragma once

#include "config.h"

TD_NAMESPACE_BEGIN

// Direction r of a jet: coefficients of orders 1..stored stand at first, first+1, ...; a collapsed direction
// (weight != 0) has one more, of which only the weighted sum over all collapsed directions is kept, in the last slot.
struct Direction {
  int order, first;
  double weight;
  bool carries_top;  // the first collapsed direction stands for the whole sum: its top coefficient is top_share * sum
  TD_HD bool collapsed() const { return weight != 0.0; }
  TD_HD int stored() const { return order - (collapsed() ? 1 : 0); }
  // Where the coefficient of order k stands, and, so that loads need no branch, somewhere for those that aren't stored.
  TD_HD int place(int k) const { return k <= stored() ? first + k - 1 : 0; }
};

// A layout L lists its directions as runs of equal ones: runs(), and for run i length(i), order(i) and weight(i) (0
// when not collapsed). It also offers collapsed() (any direction is), top(), the index of the collapsed slot, and
// top_share(), 1 / weight of the first collapsed direction.
// Calls f(K, direction) for each direction in turn, with K as Orders has it (propagate.h) for each run.
template <class Orders, class L, class F>
TD_HD void for_each_direction(const L& layout, F&& f) {
  Direction first{0, 1, 0.0, false};
  bool top_carried = false;
  for (int i = 0; i < layout.runs(); ++i) {
    const int length = layout.length(i);
    first.order = layout.order(i);
    first.weight = layout.weight(i);
    first.carries_top = first.collapsed() && !top_carried;
    top_carried = top_carried || first.collapsed();
    Orders::visit(first, [&](auto K, Direction d) TD_INLINE_LAMBDA {
      for (int left = length; left > 0; --left) {
        f(K, d);
        d.first += d.stored();
        d.carries_top = false;
      }
    });
    first.first += length * first.stored();
  }
}

TD_NAMESPACE_END
