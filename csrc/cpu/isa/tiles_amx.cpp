// Products on the matrix unit.
#ifdef __x86_64__
#include "tiles/tiles_bf16.h"

namespace sslops {
const TileKernels& tiles_amx() {
  static const TileKernels kernels{forward, backward};
  return kernels;
}
}  // namespace sslops
#endif
