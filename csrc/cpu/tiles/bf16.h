// Products of bfloat16 rows, 32 x 32 at a time, and what prepares their operands: on the matrix
// unit (AMX), or with the dot products of AVX-512 where the including file defines SSLOPS_DOT.
//
// One primitive, C += A B: A row-major, B with its rows in pairs (two consecutive k beside each
// other). Similarities take A = x16, B = panels16; gradients A = G or its transpose, B = pairs16.
#pragma once
// GCC's own headers start undefined registers as `y = y`.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#include <immintrin.h>

#include <cstdint>
#include <cstring>

#if defined(SSLOPS_EMULATE_AMX) && !defined(SSLOPS_DOT)
#include "tiles/amx_emulated.h"
#endif

#pragma GCC target("avx512f,avx512dq,avx512bw,avx512vl,avx512bf16,fma,amx-tile,amx-bf16")
#include "tiles/tiles_f32.h"

namespace sslops {
namespace {

using V = Vec<16>;
using F = V::F;
using Tiles = TilesF32<16, 12, 2>;

// B of a product: row k / 2 at `data + k / 2 * stride`, columns 16.. at `data + next`.
struct PairedRows {
  const uint16_t* data;
  int64_t stride, next;
};

#ifdef SSLOPS_DOT
struct TileRegisters {
  TileRegisters() {}  // nothing to switch on
};

// R rows of c [32, 32] = (add ? c : 0) + a [32, K] b [K, 32]
template <int R>
SSLOPS_INLINE void multiply_rows(const uint16_t* a, int64_t lda, PairedRows b, float* c,
                                 int64_t ldc, int64_t K, bool add) {
  __m512 acc[R][2];
  for (int r = 0; r < R; ++r)
    for (int v = 0; v < 2; ++v)
      acc[r][v] = add ? _mm512_loadu_ps(c + r * ldc + 16 * v) : _mm512_setzero_ps();
  for (int64_t k = 0; k < K; k += 2) {
    const uint16_t* bk = b.data + k / 2 * b.stride;
    const __m512i low = _mm512_loadu_si512(bk), high = _mm512_loadu_si512(bk + b.next);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      int32_t pair;
      std::memcpy(&pair, a + r * lda + k, 4);
      const __m512i both = _mm512_set1_epi32(pair);
      acc[r][0] = _mm512_dpbf16_ps(acc[r][0], (__m512bh)both, (__m512bh)low);
      acc[r][1] = _mm512_dpbf16_ps(acc[r][1], (__m512bh)both, (__m512bh)high);
    }
  }
  for (int r = 0; r < R; ++r)
    for (int v = 0; v < 2; ++v) _mm512_storeu_ps(c + r * ldc + 16 * v, acc[r][v]);
}

SSLOPS_INLINE void multiply(const uint16_t* a, int64_t lda, PairedRows b, float* c, int64_t ldc,
                            int64_t K, bool add) {
  multiply_rows<12>(a, lda, b, c, ldc, K, add);
  multiply_rows<12>(a + 12 * lda, lda, b, c + 12 * ldc, ldc, K, add);
  multiply_rows<8>(a + 24 * lda, lda, b, c + 24 * ldc, ldc, K, add);
}
#else
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
#endif

SSLOPS_INLINE int64_t padded(int64_t D) { return (D + kPanel - 1) / kPanel * kPanel; }

// Similarities of 32 rows with the columns of j: s [32, kTileStride].
inline void similarity_strip(const TileProblem& p, int64_t row, Range j, float* s) {
  const int64_t panel = p.ld16 * 16;  // elements of 16 columns
  for (int64_t c = 0; c < j.size(); c += 32)
    multiply(p.x16 + row * p.ld16, p.ld16, {p.panels16 + (j.begin + c) / 16 * panel, 32, panel},
             s + c, kTileStride, padded(p.D), false);
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

// dx[to] += g [to, from] x[from]
inline void accumulate_bf16(const TileProblem& p, Range to, Range from, const uint16_t* g) {
  for (int64_t d = 0; d < p.D; d += 32)
    for (int64_t r = 0; r < to.size(); r += 32)
      multiply(g + r * kHalfStride, kHalfStride,
               {p.pairs16 + (from.begin / 2 * p.ld16 + d) * 2, p.ld16 * 2, 32},
               p.dx + (to.begin + r) * p.ld + d, p.ld, from.size(), true);
}

}  // namespace
}  // namespace sslops
