// Any processor: 128-bit vectors of the baseline (SSE2, NEON).
#include "ops/ema_span.h"

namespace sslops {
const EmaKernels& ema_portable() { return Ema<4>::kernels(); }
}  // namespace sslops
