// What the moving average of one pair of tensors needs. No ATen here: the files that implement
// this are compiled once for each instruction set.
#pragma once
#include <cstdint>

namespace sslops {

enum EmaType { kEmaFloat, kEmaBFloat16, kEmaHalf, kEmaDouble, kEmaTypes };

struct EmaStep {
  double momentum, weight;  // weight = 1 - momentum, taken in double precision
  bool stochastic;          // rounding of bfloat16 and float16
};

// Random words of one tensor: see sslops/reference/ema.py, which has the same bits.
struct EmaKey {
  uint32_t k0, k1;
};

// Elements [begin, end) of one pair, each a contiguous array.
using EmaSpan = void (*)(void* target, const void* source, int64_t begin, int64_t end,
                         const EmaStep&, EmaKey);

struct EmaKernels {
  EmaSpan span[kEmaTypes][kEmaTypes];  // [target][source]
};

inline uint32_t ema_mix(uint32_t x) {
  x = (x ^ x >> 16) * 0x7feb352du;
  x = (x ^ x >> 15) * 0x846ca68bu;
  return x ^ x >> 16;
}

}  // namespace sslops
