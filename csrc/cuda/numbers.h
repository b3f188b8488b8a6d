// Single numbers: dtypes chosen at run time, sums over a warp and a block, the scale of the logits.
#pragma once
#include <cmath>
#include <cstdint>

#include "machine.h"

namespace sslops {

// dtypes that a kernel reads and writes by a branch which all threads of a block take alike
enum class Kind : int { kFloat, kBFloat16, kHalf, kDouble, kOther };

constexpr float kLog2e = 1.44269504088896f;
constexpr float kLn2 = 0.693147180559945f;
constexpr float kNormEps = 1e-12f;  // of torch.nn.functional.normalize

__device__ inline float load(const void* p, int64_t n, Kind kind) {
  switch (kind) {
    case Kind::kBFloat16:
      return static_cast<const BFloat16*>(p)[n];
    case Kind::kHalf:
      return static_cast<const Half*>(p)[n];
    case Kind::kDouble:
      return static_cast<float>(static_cast<const double*>(p)[n]);
    default:
      return static_cast<const float*>(p)[n];
  }
}

__device__ inline void store(void* p, int64_t n, Kind kind, float value) {
  switch (kind) {
    case Kind::kBFloat16:
      static_cast<BFloat16*>(p)[n] = BFloat16(value);
      return;
    case Kind::kHalf:
      static_cast<Half*>(p)[n] = Half(value);
      return;
    case Kind::kDouble:
      static_cast<double*>(p)[n] = value;
      return;
    default:
      static_cast<float*>(p)[n] = value;
  }
}

__device__ inline float warp_sum(float value) {
  for (int mask = 16; mask > 0; mask /= 2) value += shuffle_xor(value, mask);
  return value;
}

// Sum over a block of 32 * kWarps threads, in the same order on every run. All threads must call.
template <int kWarps>
__device__ inline float block_sum(float value) {
  float* sums = reinterpret_cast<float*>(shared_memory());
  value = warp_sum(value);
  if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = value;
  barrier();
  float total = 0.0f;
  for (int warp = 0; warp < kWarps; ++warp) total += sums[warp];
  barrier();  // before the next sum overwrites these
  return total;
}

// The inverse temperature, read on the device; NaN where it is not positive.
struct Scale {
  const float* tensor;  // nullptr: 1
  float factor;

  __device__ float value() const {
    const float scale = tensor == nullptr ? factor : *tensor * factor;
    return scale > 0.0f ? scale : NAN;
  }
};

}  // namespace sslops
