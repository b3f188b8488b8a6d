#ifdef __x86_64__
#include <cstdint>
#include <cstring>

#pragma GCC target("avx2,fma")
#include "ema_span.h"

namespace sslops {
const EmaKernels& ema_avx2() { return Ema<8>::kernels(); }
}  // namespace sslops
#endif
