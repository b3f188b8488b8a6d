// The matrix unit in plain C++, for machines without one: SSLOPS_EMULATE_AMX=1 at build time. Slow;
// for tests of the code around it.
#pragma once
#include <cstdint>
#include <cstring>

namespace sslops {
namespace {

thread_local uint8_t emulated_tile[8][16][64];

inline float emulated_bf16(const uint8_t* p) {
  uint32_t word = 0;
  std::memcpy(reinterpret_cast<uint8_t*>(&word) + 2, p, 2);
  float value;
  std::memcpy(&value, &word, 4);
  return value;
}
inline void emulated_load(int tile, const void* from, int64_t stride) {
  for (int r = 0; r < 16; ++r)
    std::memcpy(emulated_tile[tile][r], static_cast<const uint8_t*>(from) + r * stride, 64);
}
inline void emulated_store(int tile, void* to, int64_t stride) {
  for (int r = 0; r < 16; ++r)
    std::memcpy(static_cast<uint8_t*>(to) + r * stride, emulated_tile[tile][r], 64);
}
// c += a b: row m of a holds pairs of k, row k / 2 of b pairs of k for each of its columns.
inline void emulated_dot(int c, int a, int b) {
  for (int m = 0; m < 16; ++m)
    for (int n = 0; n < 16; ++n) {
      float sum;
      std::memcpy(&sum, &emulated_tile[c][m][4 * n], 4);
      for (int k = 0; k < 32; ++k)
        sum += emulated_bf16(&emulated_tile[a][m][2 * k]) *
               emulated_bf16(&emulated_tile[b][k / 2][4 * n + 2 * (k % 2)]);
      std::memcpy(&emulated_tile[c][m][4 * n], &sum, 4);
    }
}

}  // namespace
}  // namespace sslops

#undef _tile_loadconfig
#undef _tile_release
#undef _tile_loadd
#undef _tile_stored
#undef _tile_zero
#undef _tile_dpbf16ps
#define _tile_loadconfig(config) static_cast<void>(config)
#define _tile_release() static_cast<void>(0)
#define _tile_loadd(tile, from, stride) emulated_load(tile, from, stride)
#define _tile_stored(tile, to, stride) emulated_store(tile, to, stride)
#define _tile_zero(tile) std::memset(emulated_tile[tile], 0, sizeof(emulated_tile[tile]))
#define _tile_dpbf16ps(c, a, b) emulated_dot(c, a, b)
