// What one row on its way into a queue needs. No ATen here: the files that implement this are
// compiled once for each instruction set.
#pragma once
#include <cstdint>

namespace sslops {

enum class Stored { kF32, kBf16, kF16 };

// Copies D numbers from `key` to `out`, divided by max(their norm, 1e-12) if `normalize`, and
// rounded to the element type of `out`.
using StoreRow = void (*)(const void* key, int64_t D, bool normalize, void* out);

}  // namespace sslops
