// Any processor: 128-bit vectors of the baseline (SSE2, NEON).
#include "tiles/cross_kernels.h"

namespace sslops {
const CrossKernels& cross_portable() { return cross_kernels<EngineF32<TilesF32<4, 4, 2>>>(); }
}  // namespace sslops
