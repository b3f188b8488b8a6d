// Any processor: 128-bit vectors of the baseline (SSE2, NEON).
#include "tiles/tiles_f32.h"

namespace sslops {
const TileKernels& tiles_portable() {
  using Tiles = TilesF32<4, 4, 2>;
  static const TileKernels kernels{Tiles::forward, Tiles::backward};
  return kernels;
}
}  // namespace sslops
