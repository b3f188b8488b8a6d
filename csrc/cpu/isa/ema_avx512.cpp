// AVX-512.
#ifdef __x86_64__
// GCC 12 sees it in its own conversions
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>

#include <cstdint>
#include <cstring>

#pragma GCC target("avx512f,avx512dq,avx512bw,avx512vl,fma,f16c")
#define SSLOPS_INTRINSICS  // GCC 12 does not define __F16C__ here
#include "ops/ema_span.h"

namespace sslops {
const EmaKernels& ema_avx512() { return Ema<16>::kernels(); }
}  // namespace sslops
#endif
