// AVX2 with fused multiply-add: 4 x 2 accumulators of the 16 registers.
#ifdef __x86_64__
#include <cstdint>
#include <cstring>

#pragma GCC target("avx2,fma")
#include "tiles/cross_kernels.h"

namespace sslops {
const CrossKernels& cross_avx2() { return cross_kernels<EngineF32<TilesF32<8, 4, 2>>>(); }
}  // namespace sslops
#endif
