// AVX2 with fused multiply-add: 4 x 2 accumulators of the 16 registers.
#ifdef __x86_64__
#include <cstdint>
#include <cstring>

#pragma GCC target("avx2,fma")
#include "tiles/tiles_f32.h"

namespace sslops {
const TileKernels& tiles_avx2() {
  using Tiles = TilesF32<8, 4, 2>;
  static const TileKernels kernels{Tiles::forward, Tiles::backward};
  return kernels;
}
}  // namespace sslops
#endif
