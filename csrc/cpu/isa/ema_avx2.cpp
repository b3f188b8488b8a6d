// AVX2 with fused multiply-add; every processor with these also converts float16.
#ifdef __x86_64__
#include <immintrin.h>

#include <cstdint>
#include <cstring>

#pragma GCC target("avx2,fma,f16c")
#define SSLOPS_INTRINSICS  // GCC 12 does not define __F16C__ here
#include "ops/ema_span.h"

namespace sslops {
const EmaKernels& ema_avx2() { return Ema<8>::kernels(); }
}  // namespace sslops
#endif
