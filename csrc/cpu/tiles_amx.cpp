// Tiles of similarities of bfloat16 rows on the AMX matrix unit, exponentials on AVX-512. Sums,
// gradients and everything else stay in float32; docs/math/nt_xent.md has the formulas.
#ifdef __x86_64__
#include "tiles_amx.h"
#include "amx.h"

namespace sslops {
namespace {

constexpr int kDegree = 4;

void forward(const TileProblem& p, Range i, Range j, float* scratch) {
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
SSLOPS_INLINE F gradient(const TileProblem& p, F similarity, int64_t row, int64_t col, F wj) {
  return p.online ? Tiles::pair_gradient(p, similarity, row, col)
                  : V::exp2_product<kDegree>(similarity, p.scale2) * (p.weight[row] + wj);
}

// Turns a strip of similarities s [32, kTileStride] of the tile (i, j) into G in place: no self
// pairs, and the positives' share taken off while everything is still float32.
void gradient_strip(const TileProblem& p, Range i, Range j, float* s) {
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
SSLOPS_INLINE void gradient_block(const TileProblem& p, const float* s, int64_t row, int64_t col,
                                  bool ready, uint16_t* g, uint16_t* gt) {
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

void backward(const TileProblem& p, Range i, Range j, float* scratch) {
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
  amx_accumulate(p, i, j, g);
  if (!diagonal) amx_accumulate(p, j, i, gt);
}

}  // namespace

void pack_panel_amx(const float* rows, int64_t ld, int64_t ld16, int64_t panel, uint16_t* x16,
                    uint16_t* panels16, uint16_t* pairs16) {
  const int64_t D = ld - 16;  // a multiple of kPanel; what lies behind it is never read
  uint16_t* x = x16 + panel * kPanel * ld16;
  for (int64_t d = 0; d < D; d += 16) {
    for (int64_t r = 0; r < kPanel; r += 2) {
      const __m256i low = round_to_bf16(V::load(rows + r * ld + d));
      const __m256i high = round_to_bf16(V::load(rows + (r + 1) * ld + d));
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(x + r * ld16 + d), low);
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(x + (r + 1) * ld16 + d), high);
      _mm512_storeu_si512(pairs16 + ((panel * kPanel + r) / 2 * ld16 + d) * 2,
                          interleave(low, high));
    }
  }
  for (int64_t half = 0; half < 2; ++half) {
    for (int64_t d = 0; d < D; d += 32) {
      __m512i m[16];
      for (int r = 0; r < 16; ++r) m[r] = _mm512_loadu_si512(x + (half * 16 + r) * ld16 + d);
      transpose(m);
      uint16_t* out = panels16 + ((panel * 2 + half) * (ld16 / 2) + d / 2) * 32;
      for (int r = 0; r < 16; ++r) _mm512_storeu_si512(out + r * 32, m[r]);
    }
  }
}

const TileKernels& tiles_amx() {
  static const TileKernels kernels{forward, backward};
  return kernels;
}

}  // namespace sslops
#else
#include "tiles_amx.h"

namespace sslops {
void pack_panel_amx(const float*, int64_t, int64_t, int64_t, uint16_t*, uint16_t*, uint16_t*) {}
}  // namespace sslops
#endif
