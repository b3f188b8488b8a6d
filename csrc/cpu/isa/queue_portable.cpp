// Any processor: 128-bit vectors of the baseline (SSE2, NEON).
#include "ops/queue_rows.h"

namespace sslops {
StoreRow store_row_portable(Stored in, Stored out) { return QueueRows<4>::find(in, out); }
}  // namespace sslops
