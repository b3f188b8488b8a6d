// AVX-512.
#ifdef __x86_64__
#include <cmath>
#include <cstdint>
#include <cstring>

#pragma GCC target("avx512f,avx512dq,avx512bw,avx512vl,fma")
#include "queue_rows.h"

namespace sslops {
StoreRow store_row_avx512(Stored in, Stored out) { return QueueRows<16>::find(in, out); }
}  // namespace sslops
#endif
