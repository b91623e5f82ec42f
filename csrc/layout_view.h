// A jet's layout as PyTorch passes it: lists of orders and weights, not owned. See layout.h and taylorderiv/layout.py.
#pragma once

#include <cstdint>

namespace taylorderiv {

class LayoutView {
 public:
  // `weights` is null when nothing is collapsed.
  LayoutView(int directions, const int64_t* orders, const double* weights)
      : directions_(directions), uniform_(directions > 0), orders_(orders), weights_(weights) {
    for (int r = 0; r < directions; ++r) {
      top_ += int(orders[r]) - (weight(r) != 0.0 ? 1 : 0);
      if (weight(r) != 0.0 && !collapsed_) top_share_ = 1.0 / weight(r);
      collapsed_ = collapsed_ || weight(r) != 0.0;
      max_order_ = orders[r] > max_order_ ? int(orders[r]) : max_order_;
      uniform_ = uniform_ && orders[r] == orders[0] && weight(r) == weight(0);
    }
  }
  int directions() const { return directions_; }
  int order(int r) const { return int(orders_[r]); }
  double weight(int r) const { return weights_ == nullptr ? 0.0 : weights_[r]; }
  bool collapsed() const { return collapsed_; }
  int top() const { return top_; }
  const double* weights() const { return weights_; }
  double top_share() const { return top_share_; }
  int size() const { return top_ + (collapsed_ ? 1 : 0); }
  int max_order() const { return max_order_; }
  // One run where all directions are equal, else each direction is a run of its own.
  int runs() const { return uniform_ ? 1 : directions_; }
  int length(int) const { return uniform_ ? directions_ : 1; }

 private:
  int directions_, top_ = 1, max_order_ = 0;
  bool collapsed_ = false, uniform_;
  double top_share_ = 0.0;
  const int64_t* orders_;
  const double* weights_;
};

}  // namespace taylorderiv
