// The matrix instructions, from the PTX manual's tables of who holds what.
#include <bit>
#include <cmath>

#include "cuda_bf16.h"
#include "cuda_fp16.h"
#include "host_intrinsics.h"

namespace taylorderiv {

namespace {

// What a thread holds of a and b.
template <class Register>
struct Fragments {
  Register a[4], b[2];
};

// Matrix units that sum in float32 cut off what they don't keep; those of float64 round.
float cut_off(double sum) {
  const float nearest = float(sum);
  return std::fabs(double(nearest)) > std::fabs(sum) ? std::nextafter(nearest, 0.0f) : nearest;
}

// d += a b. left(of, row, k) and right(of, k, column) are numbers of a and b, of(lane) being the fragments of a lane.
template <class Number, class Register, class Left, class Right>
void multiply(Number (&d)[4], const Fragments<Register>& mine, int depth, const Left& left, const Right& right) {
  const host_run::Exchange& all = host_run::exchange(&mine, sizeof(mine));
  const auto of = [&](int lane) -> const Fragments<Register>& {
    return *reinterpret_cast<const Fragments<Register>*>(all.of[lane]);
  };
  const int group = threadIdx.x % 32 / 4, thread = threadIdx.x % 4;
  for (int i = 0; i < 4; ++i) {
    const int row = group + i / 2 * 8, column = 2 * thread + i % 2;
    double sum = d[i];
    for (int k = 0; k < depth; ++k) sum += double(left(of, row, k)) * double(right(of, k, column));
    if constexpr (std::is_same_v<Number, float>) {
      d[i] = cut_off(sum);
    } else {
      d[i] = sum;
    }
  }
}

float tf32(uint32_t bits) { return std::bit_cast<float>(bits & 0xffffe000u); }

// The 16-bit half of a register.
uint16_t half_of(uint32_t bits, int i) { return uint16_t(bits >> 16 * i); }

template <class Number>
void multiply_16_bit(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], const Number& number) {
  multiply(d, Fragments<uint32_t>{{a[0], a[1], a[2], a[3]}, {b[0], b[1]}}, 16, [&](const auto& of, int row, int k) {
    return number(half_of(of(row % 8 * 4 + k % 8 / 2).a[row / 8 + k / 8 * 2], k % 2));
  }, [&](const auto& of, int k, int column) { return number(half_of(of(column * 4 + k % 8 / 2).b[k / 8], k % 2)); });
}

}  // namespace

void mma_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  multiply(d, Fragments<uint32_t>{{a[0], a[1], a[2], a[3]}, {b[0], b[1]}}, 8, [](const auto& of, int row, int k) {
    return tf32(of(row % 8 * 4 + k % 4).a[row / 8 + k / 4 * 2]);
  }, [](const auto& of, int k, int column) { return tf32(of(column * 4 + k % 4).b[k / 4]); });
}

void set_to_mma_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  for (float& number : d) number = 0.0f;
  mma_tf32(d, a, b);
}

uint32_t rounded_to_tf32(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  return (bits & 0x7fffffff) < 0x7f800000 ? (bits + 0x1000) & 0xffffe000u : bits;  // ties away from zero
}

void mma_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  multiply_16_bit(d, a, b, [](uint16_t bits) { return __bfloat162float({bits}); });
}

void set_to_mma_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  for (float& number : d) number = 0.0f;
  mma_bf16(d, a, b);
}

uint32_t two_bf16(float first, float second) {
  return uint32_t(__float2bfloat16_rn(second).bits) << 16 | __float2bfloat16_rn(first).bits;
}

namespace {

// Where a warp's threads say that rows of four matrices are.
struct Rows {
  const host_run::Exchange& all;
  unsigned char* operator()(int matrix, int row) const {
    unsigned char* at;
    std::memcpy(&at, all.of[matrix * 8 + row], sizeof(at));
    return at;
  }
};
Rows rows_at(const void* row) {
  if (reinterpret_cast<uintptr_t>(row) % 16 != 0) host_run::fail("a matrix's row that isn't aligned to 16 bytes");
  return {host_run::exchange(&row, sizeof(row))};
}

void load(uint32_t (&d)[4], const void* row, bool transposed) {
  const Rows rows = rows_at(row);
  const int group = threadIdx.x % 32 / 4, pair = threadIdx.x % 4 * 2;
  for (int matrix = 0; matrix < 4; ++matrix) {
    uint16_t both[2];
    for (int i = 0; i < 2; ++i) {
      const int r = transposed ? pair + i : group, column = transposed ? group : pair + i;
      std::memcpy(&both[i], rows(matrix, r) + 2 * column, sizeof(both[i]));
    }
    d[matrix] = uint32_t(both[1]) << 16 | both[0];
  }
}

}  // namespace

void load_matrices(uint32_t (&d)[4], const void* row) { load(d, row, false); }
void load_matrices_transposed(uint32_t (&d)[4], const void* row) { load(d, row, true); }
void store_matrices(void* row, const uint32_t (&d)[4]) {
  const Rows rows = rows_at(row);
  const int group = threadIdx.x % 32 / 4, pair = threadIdx.x % 4;
  for (int matrix = 0; matrix < 4; ++matrix) std::memcpy(rows(matrix, group) + 4 * pair, &d[matrix], sizeof(d[matrix]));
}

void mma_f16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  multiply_16_bit(d, a, b, [](uint16_t bits) { return __half2float({std::bit_cast<_Float16>(bits)}); });
}

void mma_f64(double (&d)[4], const double (&a)[4], const double (&b)[2]) {
  const Fragments<double> mine{{a[0], a[1], a[2], a[3]}, {b[0], b[1]}};
  multiply(d, mine, 8, [](const auto& of, int row, int k) { return of(row % 8 * 4 + k % 4).a[row / 8 + k / 4 * 2]; },
           [](const auto& of, int k, int column) { return of(column * 4 + k % 4).b[k / 4]; });
}

}  // namespace taylorderiv
