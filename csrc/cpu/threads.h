// How many threads a problem of similarities is worth.
#pragma once
#include <ATen/Parallel.h>

#include <cstdint>

namespace sslops {

// One for small problems, and inside of another parallel region.
inline int64_t threads_for(int64_t multiply_adds) {
  constexpr int64_t kSerial = 1 << 20;  // below it a second thread costs more
  return multiply_adds < kSerial || at::in_parallel_region() ? 1 : at::get_num_threads();
}

}  // namespace sslops
