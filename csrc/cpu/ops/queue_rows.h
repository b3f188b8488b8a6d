// One row into a queue: two sweeps over numbers that stay in L1, for every pair of element types.
// Included by one file for each instruction set, like tiles_f32.h.
#pragma once
#include <cmath>

#include "ops/queue.h"
#include "tiles/vec.h"

namespace sslops {
namespace {

struct Bf16 {
  uint16_t bits;
};
struct F16 {
  uint16_t bits;
};

template <int W>
struct Bits {  // of its own, or GCC 12 does not see vectors in the template below
  typedef uint32_t U __attribute__((vector_size(4 * W)));
  typedef uint16_t H __attribute__((vector_size(2 * W)));
};

template <int W>
struct QueueRows {
  using F = typename Vec<W>::F;
  using U = typename Bits<W>::U;
  using H = typename Bits<W>::H;

  static StoreRow store_row(Stored in, Stored out) {
    switch (in) {
      case Stored::kF32:
        return to<float>(out);
      case Stored::kBf16:
        return to<Bf16>(out);
      default:
        return to<F16>(out);
    }
  }

 private:
  template <class In>
  static StoreRow to(Stored out) {
    switch (out) {
      case Stored::kF32:
        return &row<In, float>;
      case Stored::kBf16:
        return &row<In, Bf16>;
      default:
        return &row<In, F16>;
    }
  }

  template <class In, class Out>
  static void row(const void* key, int64_t D, bool normalize, void* out) {
    const In* from = static_cast<const In*>(key);
    Out* to = static_cast<Out*>(out);
    const int64_t whole = D / W * W, rest = D - whole;
    In last[W] = {};  // what is left, with zeros that change no sum
    std::memcpy(last, from + whole, rest * sizeof(In));
    float length = 1.0f;
    if (normalize) {
      F even = {}, odd = {};  // two sums, or each addition waits for the one before
      int64_t d = 0;
      for (; d + 2 * W <= whole; d += 2 * W) {
        const F a = load(from + d), b = load(from + d + W);
        even += a * a;
        odd += b * b;
      }
      if (d < whole) {
        const F a = load(from + d);
        even += a * a;
      }
      const F a = load(last);
      odd += a * a;
      float lanes[W];
      Vec<W>::store(lanes, even + odd);
      const float norm = std::sqrt(total<W>(lanes));
      length = norm < 1e-12f ? 1e-12f : norm;  // NaN passes through
    }
    Out rounded[W];
    if (normalize) {
      for (int64_t d = 0; d < whole; d += W) store(to + d, load(from + d) / length);
      store(rounded, load(last) / length);
    } else {
      for (int64_t d = 0; d < whole; d += W) store(to + d, load(from + d));
      store(rounded, load(last));
    }
    std::memcpy(to + whole, rounded, rest * sizeof(Out));
  }

  // In pairs, unrolled: as a loop, GCC 12 takes longer over it than over a row of 128.
  template <int N>
  static SSLOPS_INLINE float total(const float* lanes) {
    if constexpr (N == 1) {
      return lanes[0];
    } else {
      float half[N / 2];
      for (int n = 0; n < N / 2; ++n) half[n] = lanes[n] + lanes[n + N / 2];
      return total<N / 2>(half);
    }
  }

  static SSLOPS_INLINE F load(const float* p) { return Vec<W>::load(p); }
  static SSLOPS_INLINE void store(float* p, F v) { Vec<W>::store(p, v); }

  template <class T>
  static SSLOPS_INLINE U words(const T* p) {
    H h;
    std::memcpy(&h, p, sizeof(h));
    return __builtin_convertvector(h, U);
  }
  template <class T>
  static SSLOPS_INLINE void words(T* p, U u) {
    const H h = __builtin_convertvector(u, H);
    std::memcpy(p, &h, sizeof(h));
  }

  static SSLOPS_INLINE F load(const Bf16* p) { return (F)(words(p) << 16); }
  static SSLOPS_INLINE void store(Bf16* p, F v) {
    const U u = (U)v;
    const U even = (u + 0x7fff + ((u >> 16) & 1)) >> 16;  // to nearest, ties to even
    words(p, v == v ? even : U{} + 0x7fc0);
  }

#ifdef SSLOPS_F16C  // the same numbers, by the processor
  static constexpr int kNearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
  // maskz: GCC 12 warns of the plain ones, which start from an undefined register
  static SSLOPS_INLINE F load(const F16* p) {
    if constexpr (W == 16) {
      __m256i h;
      std::memcpy(&h, p, sizeof(h));
      return (F)_mm512_maskz_cvtph_ps(0xffff, h);
    } else {
      __m128i h;
      std::memcpy(&h, p, sizeof(h));
      return (F)_mm256_cvtph_ps(h);
    }
  }
  static SSLOPS_INLINE void store(F16* p, F v) {
    if constexpr (W == 16) {
      const __m256i h = _mm512_maskz_cvtps_ph(0xffff, (__m512)v, kNearest);
      std::memcpy(p, &h, sizeof(h));
    } else {
      const __m128i h = _mm256_cvtps_ph((__m256)v, kNearest);
      std::memcpy(p, &h, sizeof(h));
    }
  }
#else
  static SSLOPS_INLINE F load(const F16* p) {
    const U h = words(p), sign = (h & 0x8000) << 16, size = h & 0x7fff;
    const U normal = (size << 13) + (112u << 23);  // exponents 15 and 127 both mean 2^0
    // below 2^-14 the number is a multiple of 2^-24; as integers, so that no mode flushes it
    const U small = (U)(__builtin_convertvector((typename Vec<W>::I)size, F) * 0x1p-24f);
    const U u = size < 0x400 ? small : (size < 0x7c00 ? normal : normal + (112u << 23));
    return (F)(u | sign);
  }
  static SSLOPS_INLINE void store(F16* p, F v) {
    const U sign = (U)v & 0x80000000u, size = (U)v ^ sign;
    const U normal = (size - (112u << 23) + 0xfff + ((size >> 13) & 1)) >> 13;  // carries to inf
    // the last bit of 0.5 is 2^-24: the addition rounds below 2^-14
    const U small = (U)((F)size + 0.5f) - 0x3f000000u;
    U h = size < (113u << 23) ? small : normal;
    h = size < (143u << 23) ? h : (size > (255u << 23) ? U{} + 0x7e00 : U{} + 0x7c00);
    words(p, h | (sign >> 16));
  }
#endif
};

}  // namespace
}  // namespace sslops
