// A jet's layout by value, small enough for a kernel's parameters. See layout.h.
#pragma once

#include "../config.h"
#include "../layout_view.h"

namespace taylorderiv {

class PackedLayout {
 public:
  // Runs of equal directions that fit; a run may be of any length.
  static constexpr int capacity = 128;

  static int count_runs(const LayoutView& layout) {
    int count = 0;
    for (int r = 0; r < layout.directions(); ++r) count += starts_run(layout, r);
    return count;
  }

  // count_runs(layout) must not exceed the capacity.
  explicit PackedLayout(const LayoutView& layout)
      : top_(layout.top()), collapsed_(layout.collapsed()), top_share_(layout.top_share()) {
    for (int r = 0; r < layout.directions(); ++r) {
      if (starts_run(layout, r)) {
        length_[runs_] = 0;
        order_[runs_] = layout.order(r);
        weight_[runs_] = layout.weight(r);
        ++runs_;
      }
      ++length_[runs_ - 1];
    }
  }

  TD_HD int runs() const { return runs_; }
  TD_HD int length(int i) const { return length_[i]; }
  TD_HD int order(int i) const { return order_[i]; }
  TD_HD double weight(int i) const { return weight_[i]; }
  TD_HD bool collapsed() const { return collapsed_; }
  TD_HD int top() const { return top_; }
  TD_HD double top_share() const { return top_share_; }

 private:
  static bool starts_run(const LayoutView& layout, int r) {
    return r == 0 || layout.order(r) != layout.order(r - 1) || layout.weight(r) != layout.weight(r - 1);
  }

  int runs_ = 0, top_;
  bool collapsed_;
  double top_share_;
  int length_[capacity], order_[capacity];
  double weight_[capacity];
};

}  // namespace taylorderiv
