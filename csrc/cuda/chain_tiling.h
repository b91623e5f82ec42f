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

// Where a warp keeps whole jets in registers: how many columns by 8 it takes at once, and whether the backward pass has
// three buffers, else two, and evaluates activations once more.
constexpr int fixed_tiles(int coefficients) { return coefficients <= 6 ? 2 : 1; }
constexpr bool fixed_three_buffers(int coefficients) { return coefficients <= 6; }

// A buffer in shared memory holds a tile's coefficients of one layer: a row for each coefficient and point, the points
// of a coefficient next to each other. What is outside the layer's rows and columns is zero, up to the next multiples
// of row_step and column_step.
struct ChainTiling {
  static constexpr int row_step = 32;       // rows that a warp computes at once
  static constexpr int column_step = 16;    // whole fragments of a matrix product
  static constexpr int most_threads = 256;  // of a block
  static constexpr int most_layers = 32;    // it all has to fit into a kernel's parameters
  static constexpr int widest = 256;        // layer that buffers are made for; wider inputs come in several parts
  static constexpr int ring_slots = 8;      // of 8 bytes, in which each thread receives copies of weights

  int points;      // 0: nothing fits
  bool whole;      // rows are kept for all these points, also in the last tile, which may have fewer
  int threads;     // of a block
  int stride;      // numbers from row to row
  int64_t buffer;  // numbers of a buffer
  int64_t ring_offset, shared_bytes;

  // Tiles of points as they come. `widest_layer` counts the input only up to `widest`. The backward pass needs three
  // buffers, the forward pass two.
  ChainTiling(int coefficients, int widest_layer, int number_bytes, bool backward, int64_t all_points,
              const CudaDevice& device)
      : ChainTiling(widest_layer, number_bytes, false) {
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

  // Tiles whose points are a multiple of 16: each warp takes 16 of them, in all coefficients, and fixed_tiles() columns
  // by 8.
  static ChainTiling whole_tiles(int coefficients, int widest_layer, int number_bytes, bool backward,
                                 const CudaDevice& device) {
    ChainTiling tiling(widest_layer, number_bytes, true);
    const int buffers = backward && fixed_three_buffers(coefficients) ? 3 : 2;
    const int64_t row_bytes = int64_t(tiling.stride) * number_bytes * buffers;
    const int64_t columns = round_up(widest_layer, column_step) / (8 * fixed_tiles(coefficients));
    double best = 0.0;
    for (int64_t p = 16; p <= 128; p += 16) {
      const int64_t rows = round_up(p * coefficients, row_step), jobs = p / 16 * columns;
      const Block block = with_warps(jobs, rows * row_bytes);
      if (block.bytes > device.block_shared_bytes) break;
      // Warps at work on a multiprocessor. The compiler may use 128 registers for a thread, of float64 twice as many.
      const int64_t most_warps = number_bytes == 4 ? 16 : 8;
      const int64_t blocks = std::min(device.shared_bytes / (block.bytes + reserved_bytes), most_warps / block.warps);
      const double busy = double(jobs) / double(round_up(jobs, block.warps));
      const double score = busy * double(std::max<int64_t>(blocks, 1) * block.warps) * (1.0 + 1e-3 * double(p));
      if (score < best) continue;
      best = score;
      tiling.take(int(p), rows, block, rows * row_bytes);
    }
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
  ChainTiling(int widest_layer, int number_bytes, bool whole)
      : points(0),
        whole(whole),
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
