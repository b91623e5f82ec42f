// Which coefficient stands where in a (C, ...) tensor; the C++ view of taylorderiv/layout.py.
#pragma once

#include "config.h"

TD_NAMESPACE_BEGIN

// Direction r of a jet: coefficients of orders 1..stored stand at first, first+1, ...; a collapsed direction
// (weight != 0) has one more, of which only the weighted sum over all collapsed directions is kept, in the last slot.
struct Direction {
  int order, first;
  double weight;
  bool carries_top;  // the first collapsed direction stands for the whole sum: its top coefficient is (sum) / weight
  TD_HD bool collapsed() const { return weight != 0.0; }
  TD_HD int stored() const { return order - (collapsed() ? 1 : 0); }
};

// A layout L offers directions(), order(r), weight(r) (0 when direction r isn't collapsed), collapsed() (any is) and
// top(), the index of the collapsed slot. Calls f(direction) for each direction in turn.
template <class L, class F>
TD_HD void for_each_direction(const L& layout, F&& f) {
  Direction d{0, 1, 0.0, false};
  bool top_carried = false;
  for (int r = 0; r < layout.directions(); ++r) {
    d.order = layout.order(r);
    d.weight = layout.weight(r);
    d.carries_top = d.collapsed() && !top_carried;
    top_carried = top_carried || d.collapsed();
    f(d);
    d.first += d.stored();
  }
}

TD_NAMESPACE_END
