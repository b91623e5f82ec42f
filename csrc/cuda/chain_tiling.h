// How the fused chain divides its work: tiles of points whose layers stay in a block's shared memory. Host code only.
#pragma once

#include <algorithm>
#include <cstdint>

namespace taylorderiv {

constexpr int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

// What a GPU offers to a kernel.
struct CudaDevice {
  int multiprocessors;
  int64_t shared_bytes, block_shared_bytes;  // of a multiprocessor, and those that a block may have
};

// Where a thread keeps whole jets in registers: how many columns by 8 its warp computes at once, so that the sums take
// 48 registers, or 96 for long jets (float64: two a number); and how many warps the rest of the registers is enough
// for. Measured on an H200: fewer columns mean more warps, but each of them takes the left operand apart again.
constexpr int fixed_tiles(int coefficients, int number_bytes) {
  const int words = coefficients * (number_bytes / 4);
  return words <= 3 ? 4 : words <= 12 ? 2 : 1;
}
constexpr int fixed_warps(int coefficients, int number_bytes) {
  const int words = coefficients * (number_bytes / 4);
  return 4 * words * fixed_tiles(coefficients, number_bytes) <= 48 ? 16 : 8;
}

// float32 numbers in three parts of 16 bits (split_jets.cuh): for jets whose sums take 48 registers, in blocks of so
// many warps, which leaves 168 registers for a thread; and where a multiprocessor has room for as many warps at least.
// Measured on an H200 for jets of 6 coefficients and layers of 32, 48, 64, 96 and 128 neurons: there is room for 12, 9,
// 12, 12 and 8 warps, and they are faster by 9, 6, 22, 25 and -4 percent.
constexpr bool can_split(int coefficients) { return 4 * coefficients * fixed_tiles(coefficients, 4) <= 48; }
constexpr int most_split_warps = 12, least_split_warps = 9;

// A buffer in shared memory holds a tile's coefficients of one layer: a row for each coefficient and point, the points
// of a coefficient next to each other. What is outside the layer's rows and columns is zero, up to the next multiples
// of row_step and column_step.
struct ChainTiling {
  static constexpr int row_step = 32;       // rows that a warp computes at once
  static constexpr int column_step = 16;    // whole fragments of a matrix product
  static constexpr int most_threads = 256;  // of a block
  static constexpr int fixed_points = 16;   // of a tile where jets stay in registers
  static constexpr int most_thin_columns = 4;
  static constexpr bool is_thin(int columns) { return columns <= most_thin_columns; }
  static constexpr int most_layers = 32;  // it all has to fit into a kernel's parameters
  static constexpr int widest = 256;      // layer that buffers are made for; wider inputs come in several parts
  static constexpr int ring_slots = 8;    // of 8 bytes, in which each thread receives copies of weights

  int points;          // 0: nothing fits
  int threads;         // of a block
  int stride;          // numbers from row to row
  bool split = false;  // whether float32 numbers are kept in parts
  int64_t thin = 0;    // numbers of the chain's input and output, if they have few columns, in front of the buffers
  int64_t buffer;      // numbers of a buffer; parts count as half a number
  int64_t ring_offset, shared_bytes;

  // Tiles of points as they come. `widest_layer` counts the input only up to `widest`. The backward pass needs three
  // buffers, the forward pass two.
  ChainTiling(int coefficients, int widest_layer, int number_bytes, bool backward, int64_t all_points,
              const CudaDevice& device)
      : ChainTiling(widest_layer, number_bytes) {
    const int64_t row_bytes = int64_t(stride) * number_bytes * (backward ? 3 : 2);
    const int columns = (widest_layer + 31) / 32;
    const int64_t enough = std::max<int64_t>(1, all_points / device.multiprocessors);  // work for each multiprocessor
    const int64_t most_points = std::min(enough, int64_t(128));
    double best = 0.0;
    for (int64_t p = 1; p <= most_points; ++p) {
      const int64_t rows = round_up(p * coefficients, row_step);
      // A warp computes 32 rows and columns at once.
      const Block block = with_warps(rows / row_step * columns, rows * row_bytes);
      if (block.bytes > device.block_shared_bytes) break;
      const int64_t blocks = device.shared_bytes / (block.bytes + reserved_bytes);
      // Blocks that run side by side fill each other's pauses; larger tiles read the weights less often.
      const double overlap = blocks >= 3 ? 1.0 : blocks == 2 ? 0.9 : 0.7;
      const double score = overlap * double(p * coefficients) / double(rows + row_step);
      if (score < best) continue;
      best = score;
      take(int(p), rows, block, rows * row_bytes);
    }
  }

  // Tiles where jets stay in registers: 16 points, and for each 8 * fixed_tiles() columns of a layer with an activation
  // a warp. See jets.cuh for the order of numbers in a buffer. One is enough for the forward pass, two are for the
  // backward pass. `widest_layer` counts all layers and the input.
  static ChainTiling of_fixed(int coefficients, int widest_activated, int widest_layer, int thin_columns,
                              int number_bytes, bool split, bool backward, const CudaDevice& device) {
    const int64_t columns = 8 * fixed_tiles(coefficients, number_bytes);
    const int64_t warps = round_up(widest_activated, columns) / columns;
    ChainTiling tiling(widest_layer, number_bytes);
    tiling.stride = int(round_up(std::max<int64_t>(widest_layer, warps * columns), row_step));
    const int64_t rows = fixed_points * coefficients * (split ? 3 : 2) / 2;
    const int64_t thin = round_up(fixed_points * coefficients * thin_columns, row_step);
    const int64_t bytes = (rows * tiling.stride * (backward ? 2 : 1) + thin) * number_bytes;
    const int most_warps = split ? most_split_warps : fixed_warps(coefficients, number_bytes);
    if (warps > most_warps || bytes > device.block_shared_bytes) return tiling;
    if (split) {
      const int64_t blocks = device.shared_bytes / (bytes + reserved_bytes);
      if (!can_split(coefficients) || blocks * warps < least_split_warps) return tiling;
    }
    tiling.take(fixed_points, rows, {warps, bytes}, bytes);
    tiling.split = split;
    tiling.thin = thin;
    return tiling;
  }

 private:
  static constexpr int64_t reserved_bytes = 1024;  // that CUDA keeps of each block's shared memory

  struct Block {
    int64_t warps, bytes;
  };
  static Block with_warps(int64_t jobs, int64_t buffer_bytes) {
    const int64_t warps = std::clamp<int64_t>(jobs, 4, most_threads / 32);
    return {warps, buffer_bytes + warps * 32 * ring_slots * 8};
  }
  ChainTiling(int widest_layer, int number_bytes)
      : points(0),
        threads(32),
        // Neighbouring rows then start in banks of shared memory that don't collide when a warp reads a fragment.
        stride(int(round_up(widest_layer, row_step)) + (number_bytes == 4 ? 8 : 4)),
        buffer(0),
        ring_offset(0),
        shared_bytes(0) {}
  void take(int points_, int64_t rows, const Block& block, int64_t buffer_bytes) {
    points = points_;
    threads = int(32 * block.warps);
    buffer = rows * stride;
    ring_offset = buffer_bytes;
    shared_bytes = block.bytes;
  }
};

}  // namespace taylorderiv
