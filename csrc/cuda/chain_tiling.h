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

// A buffer in shared memory holds a tile's coefficients of one layer: a row for each coefficient and point, the points
// of a coefficient next to each other. What is outside the layer's rows and columns is zero, up to the next multiples
// of row_step and column_step.
struct ChainTiling {
  static constexpr int row_step = 32;       // rows that a warp computes at once
  static constexpr int column_step = 16;    // whole fragments of a matrix product
  static constexpr int most_threads = 256;  // of a block
  static constexpr int most_layers = 32;    // it all has to fit into a kernel's parameters
  static constexpr int widest = 256;        // layer that buffers are made for; wider inputs come in several parts

  int points;      // 0: nothing fits
  int threads;     // of a block
  int stride;      // numbers from row to row
  int64_t buffer;  // numbers of a buffer
  int64_t shared_bytes;

  // `widest_layer` counts the input only up to `widest`. The backward pass needs three buffers, the forward pass two.
  ChainTiling(int coefficients, int widest_layer, int number_bytes, bool backward, int64_t all_points,
              const CudaDevice& device) {
    const int buffers = backward ? 3 : 2;
    // Neighbouring rows then start in banks of shared memory that don't collide when a warp reads a fragment.
    stride = int(round_up(widest_layer, row_step)) + (number_bytes == 4 ? 8 : 4);
    const int64_t row_bytes = int64_t(stride) * number_bytes * buffers;
    const int64_t most_rows = device.block_shared_bytes / row_bytes / row_step * row_step;
    const int64_t enough = std::max<int64_t>(1, all_points / device.multiprocessors);  // work for each multiprocessor
    const int64_t most_points = std::min({most_rows / coefficients, enough, int64_t(128)});
    points = 0;
    double best = 0.0;
    for (int64_t p = 1; p <= most_points; ++p) {
      const int64_t rows = round_up(p * coefficients, row_step);
      const int64_t blocks = device.shared_bytes / (rows * row_bytes + reserved_bytes);
      // Blocks that run side by side fill each other's pauses; larger tiles read the weights less often.
      const double overlap = blocks >= 3 ? 1.0 : blocks == 2 ? 0.9 : 0.7;
      const double score = overlap * double(p * coefficients) / double(rows + row_step);
      if (score < best) continue;
      best = score;
      points = int(p);
    }
    const int64_t rows = round_up(int64_t(points) * coefficients, row_step);
    buffer = rows * stride;
    shared_bytes = rows * row_bytes;
    // A warp computes 32 rows and columns at once.
    threads = 32 * int(std::clamp<int64_t>(rows / row_step * ((widest_layer + 31) / 32), 4, 8));
  }

 private:
  static constexpr int64_t reserved_bytes = 1024;  // that CUDA keeps of each block's shared memory
};

}  // namespace taylorderiv
