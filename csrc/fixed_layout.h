// Layouts of jets known when the kernels are compiled: these ask no question about one at run time, and keep the
// coefficients of a number in registers, which have no index then.
#pragma once

#include "layout.h"
#include "series.h"

TD_NAMESPACE_BEGIN

// The orders of the directions, negative where a direction is collapsed.
template <int... orders_>
class FixedLayout {
  static constexpr int signed_orders[] = {orders_...};

 public:
  static constexpr int directions = sizeof...(orders_);
  static constexpr bool is_collapsed = ((orders_ < 0) || ...);
  static constexpr int size = 1 + (0 + ... + (orders_ < 0 ? -orders_ - 1 : orders_)) + (is_collapsed ? 1 : 0);
  static constexpr int order(int r) { return signed_orders[r] < 0 ? -signed_orders[r] : signed_orders[r]; }
  static constexpr bool is_collapsed_in(int r) { return signed_orders[r] < 0; }
  static constexpr int first(int r) {
    int place = 1;
    for (int before = 0; before < r; ++before) place += order(before) - (is_collapsed_in(before) ? 1 : 0);
    return place;
  }
  static constexpr bool carries_top(int r) {
    for (int before = 0; before < r; ++before) {
      if (is_collapsed_in(before)) return false;
    }
    return is_collapsed_in(r);
  }

  // Whether a jet has this layout.
  template <class View>
  static bool fits(const View& layout) {
    int r = 0;
    for (int i = 0; i < layout.runs(); ++i) {
      for (int left = layout.length(i); left > 0; --left, ++r) {
        if (r == directions || layout.order(i) != order(r) || (layout.weight(i) != 0.0) != is_collapsed_in(r)) {
          return false;
        }
      }
    }
    return r == directions;
  }

  // The collapsed directions' weights, by direction.
  TD_HD FixedLayout(const double* weights, double top_share) : weights_(weights), top_share_(top_share) {}
  TD_HD static constexpr bool collapsed() { return is_collapsed; }
  TD_HD static constexpr int top() { return size - 1; }
  TD_HD double top_share() const { return top_share_; }
  TD_HD double weight(int r) const { return weights_[r]; }

 private:
  const double* weights_;
  double top_share_;
};

// The directions' orders as they are: see propagate.h.
struct FixedOrders {
  template <class K>
  TD_HD static constexpr K last(K k, const Direction&) {
    return k;
  }
};

template <class Layout, class F, int... r>
TD_HD void for_each_fixed_direction(const Layout& layout, F& f, std::integer_sequence<int, r...>) {
  const auto visit = [&](auto index) TD_INLINE_LAMBDA {
    constexpr int i = decltype(index)::value;
    Direction d{Layout::order(i), Layout::first(i), 0.0, Layout::carries_top(i)};
    if constexpr (Layout::is_collapsed_in(i)) {
      d.weight = layout.weight(i);
      TD_ASSUME(d.weight != 0.0);
    }
    f(Const<Layout::order(i)>{}, d);
  };
  (visit(Const<r>{}), ...);
}

// layout.h's, for these layouts.
template <class Orders, int... orders, class F>
TD_HD void for_each_direction(const FixedLayout<orders...>& layout, F&& f) {
  for_each_fixed_direction(layout, f, std::make_integer_sequence<int, sizeof...(orders)>{});
}

TD_NAMESPACE_END
