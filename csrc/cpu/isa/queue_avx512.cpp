// AVX-512.
#ifdef __x86_64__
#include <immintrin.h>

#include <cmath>
#include <cstdint>
#include <cstring>

#pragma GCC target("avx512f,avx512dq,avx512bw,avx512vl,fma,f16c")
#define SSLOPS_F16C  // GCC 12 does not define __F16C__ for the line above
#include "ops/queue_rows.h"

namespace sslops {
StoreRow store_row_avx512(Stored in, Stored out) { return QueueRows<16>::find(in, out); }
}  // namespace sslops
#endif
