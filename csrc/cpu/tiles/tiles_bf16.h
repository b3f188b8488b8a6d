// Tiles of similarities of bfloat16 rows, exponentials on AVX-512. Sums, gradients and everything
// else stay in float32; docs/math/nt_xent.md has the formulas.
#pragma once
#include "tiles/bf16.h"

namespace sslops {
namespace {

struct TilesBf16 {
  static constexpr int kDegree = 4;

  static void forward(const TileProblem& p, Range i, Range j, float* scratch) {
    const TileRegisters registers;
    if (p.online || p.stats || i.begin == j.begin || j.end > p.M || Tiles::has_positive(p, i, j)) {
      for (int64_t r = 0; r < i.size(); r += 32)
        similarity_strip(p, i.begin + r, j, scratch + r * kTileStride);
      Tiles::forward_stored<kDegree>(p, i, j, scratch, scratch + kTile * kTileStride);
      return;
    }
    float* s = scratch;                           // [32, kTileStride]
    float* col_sum = scratch + 32 * kTileStride;  // [kTile]
    for (int64_t c = 0; c < j.size(); ++c) col_sum[c] = 0.0f;
    for (int64_t r0 = i.begin; r0 < i.end; r0 += 32) {
      similarity_strip(p, r0, j, s);
      F lanes[32] = {};
      for (int64_t c = 0; c < j.size(); c += 16) {
        F col = V::load(col_sum + c);
        for (int r = 0; r < 32; ++r) {
          const F e = V::exp2_product<kDegree>(V::load(s + r * kTileStride + c), p.scale2);
          lanes[r] += e;
          col += e;
        }
        V::store(col_sum + c, col);
      }
      for (int r = 0; r < 32; ++r) p.row_sum[r0 + r] += V::sum(lanes[r]);
    }
    for (int64_t c = 0; c < j.size(); ++c) p.row_sum[j.begin + c] += col_sum[c];
  }

  // G of one row and 16 columns, without mask and positives.
  static SSLOPS_INLINE F gradient(const TileProblem& p, F similarity, int64_t row, int64_t col,
                                  F wj) {
    return p.online ? Tiles::pair_gradient(p, similarity, row, col)
                    : V::exp2_product<kDegree>(similarity, p.scale2) * (p.weight[row] + wj);
  }

  // Turns a strip of similarities s [32, kTileStride] of the tile (i, j) into G in place: no self
  // pairs, and the gradient of the positives subtracted while everything is still float32.
  static void gradient_strip(const TileProblem& p, Range i, Range j, float* s) {
    for (int64_t c = 0; c < j.size(); c += 16) {
      const F wj = V::load(p.weight + j.begin + c);
      for (int64_t r = 0; r < i.size(); ++r) {
        float* at = s + r * kTileStride + c;
        V::store(at, gradient(p, V::load(at), i.begin + r, j.begin + c, wj));
      }
    }
    for (int64_t r = i.begin; r < i.end; ++r)
      if (r >= j.begin && r < j.end) s[(r - i.begin) * kTileStride + (r - j.begin)] = 0.0f;
    Tiles::for_positives(p, i, j, [&](int64_t r, int64_t c) {
      s[(r - i.begin) * kTileStride + (c - j.begin)] -= p.pull[r] + p.pull[c];
    });
  }

  // G of 32 rows x 16 columns rounded to bfloat16, to g [32, ..] and transposed to gt [16, ..].
  // `ready`: s holds G already, else similarities.
  static SSLOPS_INLINE void gradient_block(const TileProblem& p, const float* s, int64_t row,
                                           int64_t col, bool ready, uint16_t* g, uint16_t* gt) {
    const F wj = V::load(p.weight + col);
    __m512i pairs[16];
    for (int r = 0; r < 32; r += 2) {
      __m256i half[2];
      for (int h = 0; h < 2; ++h) {
        const F v = V::load(s + (r + h) * kTileStride);
        half[h] = round_to_bf16(ready ? v : gradient(p, v, row + r + h, col, wj));
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(g + (r + h) * kHalfStride), half[h]);
      }
      pairs[r / 2] = interleave(half[0], half[1]);
    }
    transpose(pairs);
    for (int c = 0; c < 16; ++c) _mm512_storeu_si512(gt + c * kHalfStride, pairs[c]);
  }

  static void backward(const TileProblem& p, Range i, Range j, float* scratch) {
    const TileRegisters registers;
    const bool diagonal = i.begin == j.begin;
    float* s = scratch;                                                     // [32, kTileStride]
    uint16_t* g = reinterpret_cast<uint16_t*>(scratch + 32 * kTileStride);  // [kTile, kHalfStride]
    uint16_t* gt = g + kTile * kHalfStride;                                 // [kTile, kHalfStride]
    const bool ready = diagonal || Tiles::has_positive(p, i, j);
    for (int64_t r = 0; r < i.size(); r += 32) {
      const Range strip{i.begin + r, i.begin + r + 32};
      similarity_strip(p, strip.begin, j, s);
      if (ready) gradient_strip(p, strip, j, s);
      for (int64_t c = 0; c < j.size(); c += 16)
        gradient_block(p, s + c, strip.begin, j.begin + c, ready, g + r * kHalfStride + c,
                       gt + c * kHalfStride + r);
    }
    accumulate_bf16(p, i, j, g);
    if (!diagonal) accumulate_bf16(p, j, i, gt);
  }
};

}  // namespace
}  // namespace sslops
