// Which elements of a shared tile a lane feeds to the matrix instruction: Fragment<T>, the product
// of 16 rows with 16 columns over a depth of 16.
//
//   a   rows [row, row + 16) of X at depth [k, k + 16)
//   b   columns [n, n + 16): of X Y^T, where a column is a row of Y; or of P Y, where depth is
//   c   two accumulators of the instruction's 16 x 8: columns n.. and n + 8..
//
// Tiles lie in shared memory as tile_offset of index.h says.
#pragma once
#include <cstring>

#include "index.h"
#include "machine.h"

namespace sslops {

template <class T>
struct Fragment {
  static constexpr int kA = 4, kB = 4;
  static constexpr int kPiece = 8;  // elements of 16 bytes

  __device__ static void load_a(uint32_t (&a)[kA], const unsigned char* tile, int row_bytes,
                                int row, int k, int lane) {
    ldmatrix(a, tile + tile_offset(row + lane % 16, k / kPiece + lane / 16, row_bytes));
  }

  __device__ static void load_b(uint32_t (&b)[kB], const unsigned char* tile, int row_bytes, int n,
                                int k, int lane) {
    const int row = n + lane / 16 * 8 + lane % 8;
    ldmatrix(b, tile + tile_offset(row, k / kPiece + lane / 8 % 2, row_bytes));
  }

  __device__ static void load_b_of_rows(uint32_t (&b)[kB], const unsigned char* tile, int row_bytes,
                                        int k, int n, int lane) {
    ldmatrix_transposed(b, tile + tile_offset(k + lane % 16, n / kPiece + lane / 16, row_bytes));
  }

  // What a lane holds of two accumulators is what it has to feed of a 16 x 16 `a`.
  __device__ static void a_of_c(uint32_t (&a)[kA], const float (&c0)[4], const float (&c1)[4]) {
    a[0] = pack<T>(c0[0], c0[1]);
    a[1] = pack<T>(c0[2], c0[3]);
    a[2] = pack<T>(c1[0], c1[1]);
    a[3] = pack<T>(c1[2], c1[3]);
  }

  __device__ static void multiply(float (&c0)[4], float (&c1)[4], const uint32_t (&a)[kA],
                                  const uint32_t (&b)[kB]) {
    mma<T>(c0, a, b[0], b[1]);
    mma<T>(c1, a, b[2], b[3]);
  }
};

// float32 as three products of TF32: x y = x' y' + x' (y - y') + (x - x') y' up to 2^-21 of it, x'
// being x cut to TF32, and the rests rounded to TF32. The instruction's depth is 8: two of them,
// words 0 to 3 and 4 to 7. Which element stands where in the depth is free as long as a and b
// agree.
template <>
struct Fragment<float> {
  static constexpr int kA = 8, kB = 8;
  static constexpr int kPiece = 4;

  __device__ static uint32_t word(const unsigned char* tile, int row_bytes, int row, int column) {
    uint32_t bits;
    memcpy(&bits, tile + tile_offset(row, column / kPiece, row_bytes) + column % kPiece * 4, 4);
    return bits;
  }

  __device__ static void load_a(uint32_t (&a)[kA], const unsigned char* tile, int row_bytes,
                                int row, int k, int lane) {
    const int g = lane / 4, t = lane % 4;
    for (int half = 0; half < 2; ++half)
      for (int n = 0; n < 4; ++n)
        a[4 * half + n] = word(tile, row_bytes, row + g + n % 2 * 8, k + 8 * half + t + n / 2 * 4);
  }

  // Word 4 half + 2 m + n: column n.. + 8 m, depth t + 4 n of half `half`.
  __device__ static void load_b(uint32_t (&b)[kB], const unsigned char* tile, int row_bytes, int n,
                                int k, int lane) {
    const int g = lane / 4, t = lane % 4;
    for (int half = 0; half < 2; ++half)
      for (int m = 0; m < 2; ++m)
        for (int depth = 0; depth < 2; ++depth)
          b[4 * half + 2 * m + depth] =
              word(tile, row_bytes, n + 8 * m + g, k + 8 * half + t + 4 * depth);
  }

  // An accumulator's columns 2 t and 2 t + 1 stand at depth t and t + 4.
  __device__ static void load_b_of_rows(uint32_t (&b)[kB], const unsigned char* tile, int row_bytes,
                                        int k, int n, int lane) {
    const int g = lane / 4, t = lane % 4;
    for (int half = 0; half < 2; ++half)
      for (int m = 0; m < 2; ++m)
        for (int depth = 0; depth < 2; ++depth)
          b[4 * half + 2 * m + depth] =
              word(tile, row_bytes, k + 8 * half + 2 * t + depth, n + 8 * m + g);
  }

  __device__ static void a_of_c(uint32_t (&a)[kA], const float (&c0)[4], const float (&c1)[4]) {
    for (int n = 0; n < 4; ++n) {  // (row g, depth t), (g + 8, t), (g, t + 4), (g + 8, t + 4)
      const int from = n % 2 * 2 + n / 2;
      memcpy(&a[n], &c0[from], 4);
      memcpy(&a[4 + n], &c1[from], 4);
    }
  }

  __device__ static uint32_t cut(uint32_t bits) { return bits & 0xffffe000u; }
  __device__ static uint32_t rest(uint32_t bits) {
    const uint32_t top = cut(bits);
    float all, high;
    memcpy(&all, &bits, 4);
    memcpy(&high, &top, 4);
    const float low = all - high;
    uint32_t out;
    memcpy(&out, &low, 4);
    return cut(out + 0x1000u);
  }

  __device__ static void multiply(float (&c0)[4], float (&c1)[4], const uint32_t (&a)[kA],
                                  const uint32_t (&b)[kB]) {
    for (int half = 0; half < 2; ++half) {
      uint32_t top[4], low[4];
      for (int n = 0; n < 4; ++n) {
        top[n] = cut(a[4 * half + n]);
        low[n] = rest(a[4 * half + n]);
      }
      const uint32_t* const w = b + 4 * half;
      mma_tf32(c0, low, cut(w[0]), cut(w[1]));
      mma_tf32(c1, low, cut(w[2]), cut(w[3]));
      mma_tf32(c0, top, rest(w[0]), rest(w[1]));
      mma_tf32(c1, top, rest(w[2]), rest(w[3]));
      mma_tf32(c0, top, cut(w[0]), cut(w[1]));
      mma_tf32(c1, top, cut(w[2]), cut(w[3]));
    }
  }
};

}  // namespace sslops
