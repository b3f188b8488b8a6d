// Any processor: 128-bit vectors of the baseline (SSE2, NEON).
#include "cross_tiles.h"

namespace sslops {
const CrossKernels& cross_portable() { return Cross<EngineF32<TilesF32<4, 4, 2>>>::kernels(); }
}  // namespace sslops
