// Any processor: 128-bit vectors of the baseline (SSE2, NEON).
#include "isa/float32_kernels.h"

namespace sslops {
const IsaKernels& portable_kernels() { return float32_kernels<TilesF32<4, 4, 2>>(); }
}  // namespace sslops
