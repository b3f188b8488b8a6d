// The arithmetic of ema.cu for one element: random words, rounding, the average itself.
// sslops/reference/ema.py has the same bits of noise.
#pragma once
#include <cmath>
#include <cstring>

#include "index.h"
#include "machine.h"

namespace sslops {

// What a word of noise depends on besides the number of the element.
struct EmaKey {
  uint32_t k0, k1;
};

SSLOPS_HD inline uint32_t ema_mix(uint32_t x) {
  x = (x ^ x >> 16) * 0x7feb352du;
  x = (x ^ x >> 15) * 0x846ca68bu;
  return x ^ x >> 16;
}

inline EmaKey ema_key(int64_t seed, uint32_t tensor) {
  const uint32_t low = static_cast<uint32_t>(seed), high = static_cast<uint32_t>(seed >> 32);
  const uint32_t first = ema_mix(low + tensor * 0x9e3779b9u);
  return {ema_mix(first ^ high), ema_mix(ema_mix(high) + first)};
}

SSLOPS_HD inline uint32_t ema_noise(EmaKey key, int64_t element) {
  const uint32_t low = static_cast<uint32_t>(element), high = static_cast<uint32_t>(element >> 32);
  return ema_mix(ema_mix(low ^ key.k0) + key.k1 + high);
}

// x with its `spare` last bits rounded up or down, up with the probability of their value.
__device__ inline float round_off(float x, uint32_t noise, int spare) {
  uint32_t bits;
  memcpy(&bits, &x, 4);
  bits = (bits + (noise >> (32 - spare))) & ~((1u << spare) - 1u);
  memcpy(&x, &bits, 4);
  return x;
}

template <class T>
__device__ inline T round_randomly(float x, uint32_t noise);
template <>
__device__ inline BFloat16 round_randomly<BFloat16>(float x, uint32_t noise) {
  return BFloat16(fabsf(x) < INFINITY ? round_off(x, noise, 16) : x);
}
template <>
__device__ inline Half round_randomly<Half>(float x, uint32_t noise) {
  if (!(fabsf(x) < INFINITY)) return Half(x);
  // beside 2^-14, float32's spare bits are those below the steps of a subnormal float16
  const float small = 0x1p-14f;
  if (fabsf(x) < small) return Half(copysignf(round_off(fabsf(x) + small, noise, 13) - small, x));
  return Half(round_off(x, noise, 13));
}

// t + (1 - m) (s - t), or from the other end where that is nearer: exact where s = t.
template <class F>
__device__ inline F blend(F t, F s, double momentum) {
  const double weight = 1.0 - momentum;
  if (momentum == 0.0) return s;
  return weight <= 0.5 ? t + static_cast<F>(weight) * (s - t)
                       : s + static_cast<F>(momentum) * (t - s);
}

// The average of one element of a T and an S, in float or, if either is, in double.
template <class T, class S>
__device__ inline T average(T t, S s, double momentum, bool random, EmaKey key, int64_t element) {
  constexpr bool kWide = sizeof(T) == 8 || sizeof(S) == 8;
  if constexpr (kWide) {
    const double mean = blend<double>(static_cast<double>(t), static_cast<double>(s), momentum);
    if constexpr (sizeof(T) == 8) {
      return mean;
    } else {
      const float narrow = static_cast<float>(mean);
      if constexpr (sizeof(T) == 2)
        if (random) return round_randomly<T>(narrow, ema_noise(key, element));
      return T(narrow);
    }
  } else {
    const float mean = blend<float>(static_cast<float>(t), static_cast<float>(s), momentum);
    if constexpr (sizeof(T) == 2)
      if (random) return round_randomly<T>(mean, ema_noise(key, element));
    return T(mean);
  }
}

}  // namespace sslops
