// AVX2 with fused multiply-add: 4 x 2 accumulators of the 16 registers. Every processor with these
// also converts float16.
#ifdef __x86_64__
#include <immintrin.h>

#include <cmath>
#include <cstdint>
#include <cstring>

#pragma GCC target("avx2,fma,f16c")
#define SSLOPS_F16C  // GCC 12 does not define __F16C__ for the line above
#include "isa/float32_kernels.h"

namespace sslops {
const IsaKernels& avx2_kernels() { return float32_kernels<TilesF32<8, 4, 2>>(); }
}  // namespace sslops
#endif
