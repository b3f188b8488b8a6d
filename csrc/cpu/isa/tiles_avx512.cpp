// AVX-512: 12 x 2 accumulators of the 32 registers.
#ifdef __x86_64__
#include <cstdint>
#include <cstring>

#pragma GCC target("avx512f,avx512dq,avx512bw,avx512vl,fma")
#include "tiles/tiles_f32.h"

namespace sslops {
const TileKernels& tiles_avx512() {
  using Tiles = TilesF32<16, 12, 2>;
  static const TileKernels kernels{Tiles::forward, Tiles::backward};
  return kernels;
}
}  // namespace sslops
#endif
