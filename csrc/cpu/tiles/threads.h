// How many threads a piece of work is worth. A thread that sleeps takes 65 us to wake, one that
// spins 2 us: the bounds lie in between.
#pragma once
#include <ATen/Parallel.h>

#include <algorithm>
#include <cstdint>

namespace sslops {

// For similarities: one for small problems, and inside of another parallel region.
inline int64_t threads_for(int64_t multiply_adds) {
  constexpr int64_t kSerial = 1 << 22;
  return multiply_adds < kSerial || at::in_parallel_region() ? 1 : at::get_num_threads();
}

// Rows of D numbers that are read and written once: so many for each thread.
inline int64_t row_grain(int64_t D) { return std::max<int64_t>(1, (1 << 17) / D); }

}  // namespace sslops
