// What the kernels of the fused chain are told, and the tables of these kernels.
#pragma once

#include "../fixed_layouts.h"
#include "chain.h"

namespace taylorderiv {

// A layer with more columns is read as the first one's input only, in parts of as many.
inline constexpr int part_columns = ChainTiling::widest;

// Of a layer's columns, those that fragments cover.
constexpr int covered(int columns) { return int(round_up(columns, ChainTiling::column_step)); }

// Where jets stay in registers, the gradient of a weight with so few rows or columns needs no matrix unit.
inline constexpr int most_thin_columns = 4;
constexpr bool is_thin(int columns) { return columns <= most_thin_columns; }

// Where a layer's numbers stand: its weight, packed as it is and transposed, and its bias among the packed numbers; the
// sums for the gradients of its weight and its bias among those of a block.
struct ChainPlaces {
  int64_t weight, transposed, bias, weight_sums, bias_sums;
};

struct ChainTask : CudaChain {
  ChainTiling tiling;
  int64_t tiles;
  int images;              // layers whose numbers before the activation are kept for the backward pass
  int64_t image;           // numbers kept of one
  int64_t packed_numbers;  // of all layers
  int64_t sums;            // numbers of a block's sums
  int64_t block_numbers;   // these, and its images unless the forward pass saved them
  ChainPlaces places[capacity];
  int fixed_layout;  // index of its layout, if that and the ops have code in fixed_chain.cuh, or -1
  double direction_weights[FixedLayouts::most_directions()];  // of the fixed layout's directions
  bool loops[capacity];  // whether a layer's activation has no unrolled code: it then needs the scratch memory
  void *packed, *blocks, *scratch;  // global memory

  ChainTask(const CudaChain& chain, const ChainTiling& tiling_, int fixed_layout_, bool backward)
      : CudaChain(chain), tiling(tiling_), packed_numbers(0), sums(0), fixed_layout(fixed_layout_) {
    const int warp_columns = 8 * fixed_tiles(coefficients, arithmetic == ChainArithmetic::f64 ? 8 : 4);
    image = fixed() ? int64_t(coefficients) * tiling.points * tiling.threads / 32 * warp_columns : tiling.buffer;
    tiles = tiling.points == 0 ? 0 : (points + tiling.points - 1) / tiling.points;
    images = layer[layers - 1].op < 0 ? layers - 1 : layers;
    for (int i = 0; i < layers; ++i) {
      const int64_t in = packed_columns(layer[i].in), out = packed_columns(layer[i].out);
      places[i].weight = packed_numbers;
      places[i].transposed = packed_numbers += in * out;
      if (backward) packed_numbers += in * out;
      places[i].bias = packed_numbers;
      packed_numbers += out;
      places[i].weight_sums = sums;
      sums += round_up(out, ChainTiling::row_step) * in;
      places[i].bias_sums = sums;
      sums += out;
    }
    block_numbers = sums + (saved == nullptr ? images * image : 0);
    if (fixed()) {
      for (int i = 0, r = 0; i < layout.runs(); ++i) {
        for (int left = layout.length(i); left > 0; --left) direction_weights[r++] = layout.weight(i);
      }
    }
  }
  TD_HD bool fixed() const { return fixed_layout >= 0; }
  // Rows or columns of a packed weight, and of its gradient's sums.
  TD_HD int packed_columns(int columns) const {
    return fixed() ? int(round_up(columns, ChainTiling::row_step)) : covered(columns);
  }
};

using ChainKernel = void (*)(ChainTask);

// The kernel for a number type, float or double; and for a fixed layout, by its index.
template <class Number, bool backward>
ChainKernel chain_kernel();
template <class Number, bool backward>
ChainKernel fixed_chain_kernel(int layout);

}  // namespace taylorderiv
