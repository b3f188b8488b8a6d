// Tiles of similarities of bfloat16 rows on the AMX matrix unit, exponentials on AVX-512. Sums,
// gradients and everything else stay in float32; docs/math/nt_xent.md has the formulas.
//
// One primitive, C += A B of 32 x 32: A row-major, B with its rows in pairs (the unit wants two
// consecutive k beside each other). Similarities take A = x16, B = panels16; the gradient takes
// A = G or its transpose, B = pairs16.
#ifdef __x86_64__
// GCC's own headers start undefined registers as `y = y`.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#include <immintrin.h>

#include <cstdint>
#include <cstring>

#pragma GCC target("avx512f,avx512dq,avx512bw,avx512vl,avx512bf16,fma,amx-tile,amx-bf16")
#include "tiles_amx.h"
#include "tiles_f32.h"

namespace sslops {
namespace {

using V = Vec<16>;
using F = V::F;
using Tiles = TilesF32<16, 12, 2>;
constexpr int kDegree = 4;

// All eight registers 16 rows of 64 bytes; released at the end, so that no state is left switched
// on.
struct TileRegisters {
  TileRegisters() {
    struct alignas(64) {
      uint8_t palette = 1, start_row = 0, reserved[14] = {};
      uint16_t bytes[16] = {};
      uint8_t rows[16] = {};
    } config;
    for (int n = 0; n < 8; ++n) config.bytes[n] = 64, config.rows[n] = 16;
    _tile_loadconfig(&config);
  }
  ~TileRegisters() { _tile_release(); }
};

// B of a product: row k / 2 at `data + k / 2 * stride`, columns 16.. at `data + next`.
struct PairedRows {
  const uint16_t* data;
  int64_t stride, next;
};

// c [32, 32] = (add ? c : 0) + a [32, K] b [K, 32]
SSLOPS_INLINE void multiply(const uint16_t* a, int64_t lda, PairedRows b, float* c, int64_t ldc,
                            int64_t K, bool add) {
  const int64_t c_bytes = ldc * 4, a_bytes = lda * 2, b_bytes = b.stride * 2;
  if (add) {
    _tile_loadd(0, c, c_bytes);
    _tile_loadd(1, c + 16, c_bytes);
    _tile_loadd(2, c + 16 * ldc, c_bytes);
    _tile_loadd(3, c + 16 * ldc + 16, c_bytes);
  } else {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  }
  for (int64_t k = 0; k < K; k += 32) {
    const uint16_t* bk = b.data + k / 2 * b.stride;
    _tile_loadd(4, a + k, a_bytes);
    _tile_loadd(6, bk, b_bytes);
    _tile_loadd(7, bk + b.next, b_bytes);
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_loadd(5, a + 16 * lda + k, a_bytes);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  _tile_stored(0, c, c_bytes);
  _tile_stored(1, c + 16, c_bytes);
  _tile_stored(2, c + 16 * ldc, c_bytes);
  _tile_stored(3, c + 16 * ldc + 16, c_bytes);
}

SSLOPS_INLINE int64_t padded(int64_t D) { return (D + kPanel - 1) / kPanel * kPanel; }

// Similarities of 32 rows with the columns of j: s [32, kTileStride].
void similarity_strip(const TileProblem& p, int64_t row, Range j, float* s) {
  const int64_t panel = p.ld16 * 16;  // elements of 16 columns
  for (int64_t c = 0; c < j.size(); c += 32)
    multiply(p.x16 + row * p.ld16, p.ld16, {p.panels16 + (j.begin + c) / 16 * panel, 32, panel},
             s + c, kTileStride, padded(p.D), false);
}

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

// 16 x 16 words of 32 bits, in place.
SSLOPS_INLINE void transpose(__m512i (&m)[16]) {
  __m512i t[16];
  for (int n = 0; n < 16; n += 2) {
    t[n] = _mm512_unpacklo_epi32(m[n], m[n + 1]);
    t[n + 1] = _mm512_unpackhi_epi32(m[n], m[n + 1]);
  }
  for (int n = 0; n < 16; n += 4) {
    m[n] = _mm512_unpacklo_epi64(t[n], t[n + 2]);
    m[n + 1] = _mm512_unpackhi_epi64(t[n], t[n + 2]);
    m[n + 2] = _mm512_unpacklo_epi64(t[n + 1], t[n + 3]);
    m[n + 3] = _mm512_unpackhi_epi64(t[n + 1], t[n + 3]);
  }
  // m[4 a + b] now holds, in lane l of 128 bits, column 4 l + b of rows 4 a ..
  for (int b = 0; b < 4; ++b) {
    t[b] = _mm512_shuffle_i32x4(m[b], m[4 + b], 0x88);
    t[4 + b] = _mm512_shuffle_i32x4(m[b], m[4 + b], 0xdd);
    t[8 + b] = _mm512_shuffle_i32x4(m[8 + b], m[12 + b], 0x88);
    t[12 + b] = _mm512_shuffle_i32x4(m[8 + b], m[12 + b], 0xdd);
  }
  for (int b = 0; b < 4; ++b) {
    m[b] = _mm512_shuffle_i32x4(t[b], t[8 + b], 0x88);
    m[8 + b] = _mm512_shuffle_i32x4(t[b], t[8 + b], 0xdd);
    m[4 + b] = _mm512_shuffle_i32x4(t[4 + b], t[12 + b], 0x88);
    m[12 + b] = _mm512_shuffle_i32x4(t[4 + b], t[12 + b], 0xdd);
  }
}

SSLOPS_INLINE __m256i round_to_bf16(F v) { return (__m256i)_mm512_cvtneps_pbh((__m512)v); }

// Words with `low` in their lower and `high` in their upper half.
SSLOPS_INLINE __m512i interleave(__m256i low, __m256i high) {
  return _mm512_or_si512(_mm512_cvtepu16_epi32(low),
                         _mm512_slli_epi32(_mm512_cvtepu16_epi32(high), 16));
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

// dx[to] += g [to, from] x[from]
void accumulate(const TileProblem& p, Range to, Range from, const uint16_t* g) {
  for (int64_t d = 0; d < p.D; d += 32)
    for (int64_t r = 0; r < to.size(); r += 32)
      multiply(g + r * kHalfStride, kHalfStride,
               {p.pairs16 + (from.begin / 2 * p.ld16 + d) * 2, p.ld16 * 2, 32},
               p.dx + (to.begin + r) * p.ld + d, p.ld, from.size(), true);
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
  accumulate(p, i, j, g);
  if (!diagonal) accumulate(p, j, i, gt);
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
