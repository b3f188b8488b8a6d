// AVX2.
#ifdef __x86_64__
#include <cmath>
#include <cstdint>
#include <cstring>

#pragma GCC target("avx2,fma")
#include "queue_rows.h"

namespace sslops {
StoreRow store_row_avx2(Stored in, Stored out) { return QueueRows<8>::find(in, out); }
}  // namespace sslops
#endif
