// The engine of two sets of rows for bfloat16 products; everything else on AVX-512 in float32.
#pragma once
#include "tiles/bf16.h"
#include "tiles/cross_kernels.h"

namespace sslops {
namespace {

struct EngineBf16 {
  using Tiles = TilesF32<16, 12, 2>;
  static constexpr int kDegree = 4;
  static void similarity(const CrossProblem& p, Range i, Range j, float* s) {
    const TileRegisters registers;
    for (int64_t r = 0; r < i.size(); r += 32)
      similarity_strip(p.similar, i.begin + r, j, s + r * kTileStride);
  }
  // Rounds S to bfloat16, as it lies and transposed, and multiplies each with the other side.
  static void accumulate(const CrossProblem& p, Range i, Range j, const float* s, float* work,
                         bool rows, bool cols) {
    const TileRegisters registers;
    uint16_t* g = reinterpret_cast<uint16_t*>(work);  // [kTile, kHalfStride]
    uint16_t* gt = g + kTile * kHalfStride;           // [kTile, kHalfStride]
    for (int64_t r = 0; r < i.size(); r += 32)
      for (int64_t c = 0; c < j.size(); c += 16)
        round_block(s + r * kTileStride + c, rows ? g + r * kHalfStride + c : nullptr,
                    cols ? gt + c * kHalfStride + r : nullptr);
    if (rows) accumulate_bf16(p.to_rows, i, j, g);
    if (cols) accumulate_bf16(p.to_cols, j, i, gt);
  }
  // 32 rows x 16 columns; either result may be null
  static SSLOPS_INLINE void round_block(const float* s, uint16_t* g, uint16_t* gt) {
    __m512i pairs[16];
    for (int r = 0; r < 32; r += 2) {
      __m256i half[2];
      for (int h = 0; h < 2; ++h) {
        half[h] = round_to_bf16(V::load(s + (r + h) * kTileStride));
        if (g) _mm256_storeu_si256(reinterpret_cast<__m256i*>(g + (r + h) * kHalfStride), half[h]);
      }
      pairs[r / 2] = interleave(half[0], half[1]);
    }
    if (!gt) return;
    transpose(pairs);
    for (int c = 0; c < 16; ++c) _mm512_storeu_si512(gt + c * kHalfStride, pairs[c]);
  }
};

}  // namespace

}  // namespace sslops
