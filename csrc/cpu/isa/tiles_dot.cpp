// Products with AVX-512's dot products of bfloat16 pairs.
#ifdef __x86_64__
#define SSLOPS_DOT
#include "tiles/tiles_bf16.h"

namespace sslops {
const TileKernels& tiles_dot() {
  static const TileKernels kernels{forward, backward};
  return kernels;
}
}  // namespace sslops
#endif
