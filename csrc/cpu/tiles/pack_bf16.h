// Packing of rows for bfloat16 products.
#pragma once
#include "tiles/bf16.h"

namespace sslops {
namespace {

inline void pack_panel(const float* rows, int64_t ld, int64_t ld16, int64_t panel, uint16_t* x16,
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

}  // namespace
}  // namespace sslops
