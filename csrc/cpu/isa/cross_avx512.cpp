// AVX-512: 12 x 2 accumulators of the 32 registers.
#ifdef __x86_64__
#include <cstdint>
#include <cstring>

#pragma GCC target("avx512f,avx512dq,avx512bw,avx512vl,fma")
#include "tiles/cross_kernels.h"

namespace sslops {
const CrossKernels& cross_avx512() { return cross_kernels<EngineF32<TilesF32<16, 12, 2>>>(); }
}  // namespace sslops
#endif
