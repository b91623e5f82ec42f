// What the kernels of the fused chain are told, and the tables of these kernels.
#pragma once

#include "../fixed_layouts.h"
#include "chain.h"

namespace taylorderiv {

// A layer with more columns is read as the first one's input only, in parts of as many.
inline constexpr int part_columns = ChainTiling::widest;

// Of a layer's columns, those that fragments cover.
constexpr int covered(int columns) { return int(round_up(columns, ChainTiling::column_step)); }

// Where a layer's numbers stand: its weight, packed as it is and transposed, and its bias among the packed numbers; the
// sums for the gradients of its weight and its bias among those of a block. The columns that its packed weight, and the
// sums of its gradient, have for its input and its output.
struct ChainPlaces {
  int64_t weight, transposed, bias, weight_sums, bias_sums;
  int ins, outs;
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
  int fixed_layout;                     // index of its layout, if that and the ops have code in fixed_chain.cuh, or -1
  int thin_input = 0, thin_output = 0;  // columns, if they are so few and the layout is fixed
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
      places[i].ins = int(in);
      places[i].outs = int(out);
      const int64_t numbers = in * out * (tiling.split ? 3 : 2) / 2;
      places[i].weight = packed_numbers;
      places[i].transposed = packed_numbers += numbers;
      if (backward) packed_numbers += numbers;
      places[i].bias = packed_numbers;
      packed_numbers += out;
      places[i].weight_sums = sums;
      sums += round_up(out, ChainTiling::row_step) * in;
      places[i].bias_sums = sums;
      sums += out;
    }
    block_numbers = sums + (saved == nullptr ? images * image : 0);
    if (fixed()) {
      if (ChainTiling::is_thin(layer[0].in)) thin_input = layer[0].in;
      if (ChainTiling::is_thin(layer[layers - 1].out)) thin_output = layer[layers - 1].out;
      for (int i = 0, r = 0; i < layout.runs(); ++i) {
        for (int left = layout.length(i); left > 0; --left) direction_weights[r++] = layout.weight(i);
      }
    }
  }
  TD_HD bool fixed() const { return fixed_layout >= 0; }
  // Whether a layer's input or output has so few columns that its products, also those for gradients, need no matrix
  // unit. Its packed weight has a row for each of these columns.
  TD_HD bool is_thin_input(int i) const { return i == 0 && thin_input > 0; }
  TD_HD bool is_thin_output(int i) const { return i == layers - 1 && thin_output > 0; }

 private:
  int packed_columns(int columns) const {
    return fixed() ? int(round_up(columns, ChainTiling::row_step)) : covered(columns);
  }
};

using ChainKernel = void (*)(ChainTask);

// The kernel for a number type, float or double; and for a fixed layout, by its index.
template <class Number, bool backward>
ChainKernel chain_kernel();
template <class Number, bool backward>
ChainKernel fixed_chain_kernel(int layout);
// The same of jets in parts.
template <bool backward>
ChainKernel split_chain_kernel(int layout);

}  // namespace taylorderiv
