// AVX-512: 12 x 2 accumulators of the 32 registers.
#ifdef __x86_64__
// GCC 12 sees it in its own conversions
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>

#include <cmath>
#include <cstdint>
#include <cstring>

#pragma GCC target("avx512f,avx512dq,avx512bw,avx512vl,fma,f16c")
#define SSLOPS_F16C  // GCC 12 does not define __F16C__ for the line above
#include "isa/float32_kernels.h"

namespace sslops {
const IsaKernels& avx512_kernels() { return float32_kernels<TilesF32<16, 12, 2>>(); }
}  // namespace sslops
#endif
