// AVX2.
#ifdef __x86_64__
#include <immintrin.h>

#include <cmath>
#include <cstdint>
#include <cstring>

#pragma GCC target("avx2,fma,f16c")
#define SSLOPS_F16C  // GCC 12 does not define __F16C__ for the line above
#include "ops/queue_rows.h"

namespace sslops {
StoreRow store_row_avx2(Stored in, Stored out) { return QueueRows<8>::find(in, out); }
}  // namespace sslops
#endif
