#ifdef __x86_64__
#include <cstdint>
#include <cstring>

#pragma GCC target("avx512f,avx512dq,avx512bw,avx512vl,fma")
#include "ema_span.h"

namespace sslops {
const EmaKernels& ema_avx512() { return Ema<16>::kernels(); }
}  // namespace sslops
#endif
