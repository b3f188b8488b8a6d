// The moving average of W elements at a time; included once for each instruction set.
//
//   nearer the target: t + (1 - m) (s - t)      nearer the source: s + m (t - s)
//
// Both are exact at their end and wherever t = s: docs/math/ema.md. Everything is in an unnamed
// namespace, so that no function compiled for one instruction set is linked in place of another.
#pragma once
#include <cstdint>
#include <cstring>

#include "ops/ema.h"
#include "tiles/vec.h"

// of vectors wider than a register as results: all is inlined, nothing is called through the ABI
#pragma GCC diagnostic ignored "-Wpsabi"

namespace sslops {
namespace {

struct BFloat16 {
  uint16_t bits;
};
struct Half {
  uint16_t bits;
};

enum class Near { kTarget, kSource, kOnlySource };

// Apart from their use: only as members of a dependent type does the compiler (GCC 12) know at
// definition that these are vectors.
template <int W>
struct EmaVectors {
  typedef float F __attribute__((vector_size(4 * W)));
  typedef double D __attribute__((vector_size(8 * W)));
  typedef uint32_t U __attribute__((vector_size(4 * W)));
  typedef int32_t I __attribute__((vector_size(4 * W)));
  typedef uint16_t H __attribute__((vector_size(2 * W)));
};

template <int W>
struct EmaLanes {
  using F = typename EmaVectors<W>::F;
  using D = typename EmaVectors<W>::D;
  using U = typename EmaVectors<W>::U;
  using I = typename EmaVectors<W>::I;
  using H = typename EmaVectors<W>::H;

  static constexpr uint32_t kRebias = 112u << 23;  // exponents of float32 against float16
  static constexpr float kSmallestHalf = 0x1p-14f;

  template <class V>
  static SSLOPS_INLINE V read(const void* p) {
    V v;
    std::memcpy(&v, p, sizeof(v));
    return v;
  }
  static SSLOPS_INLINE U word(uint32_t s) { return s - U{}; }  // see vec.h

  static SSLOPS_INLINE F load(const float* p) { return read<F>(p); }
  static SSLOPS_INLINE F load(const BFloat16* p) {
#ifdef SSLOPS_F16C
    if constexpr (W == 8)  // where the compiler's own conversion takes several instructions
      return (F)(_mm256_slli_epi32(_mm256_cvtepu16_epi32(read<__m128i>(p)), 16));
#endif
    return (F)(__builtin_convertvector(read<H>(p), U) << 16);
  }
  static SSLOPS_INLINE F load(const Half* p) {
#ifdef SSLOPS_F16C
    if constexpr (W == 16) return (F)_mm512_cvtph_ps(read<__m256i>(p));
    if constexpr (W == 8) return (F)_mm256_cvtph_ps(read<__m128i>(p));
#endif
    const U h = __builtin_convertvector(read<H>(p), U);
    const U exponent = h & 0x7c00u, digits = (h & 0x7fffu) << 13;
    const F subnormal = __builtin_convertvector((I)(h & 0x3ffu), F) * 0x1p-24f;
    U magnitude = digits + (exponent == 0x7c00u ? word(2 * kRebias) : word(kRebias));
    magnitude = exponent == 0u ? (U)subnormal : magnitude;
    return (F)(magnitude | (h & 0x8000u) << 16);
  }

  // The low half of each word.
  static SSLOPS_INLINE void store_low(void* p, U words) {
#ifdef SSLOPS_F16C
    if constexpr (W == 8) {
      const __m256i v = (__m256i)words;
      const __m128i low = _mm256_castsi256_si128(v), high = _mm256_extracti128_si256(v, 1);
      const __m128i narrow = _mm_packus_epi32(low, high);
      std::memcpy(p, &narrow, sizeof(narrow));
      return;
    }
#endif
    const H narrow = __builtin_convertvector(words, H);
    std::memcpy(p, &narrow, sizeof(narrow));
  }

  // `noise` holds random bits where the result has none; without it, to nearest and even.
  template <bool Random>
  static SSLOPS_INLINE void store(float* p, F v, U) {
    std::memcpy(p, &v, sizeof(v));
  }
  template <bool Random>
  static SSLOPS_INLINE void store(BFloat16* p, F v, U noise) {
    const U bits = (U)v;
    const U up = Random ? noise >> 16 : 0x7fffu + (bits >> 16 & 1u);
    const U out = v == v ? (bits + up) >> 16 : word(0x7fc0u);  // an infinity does not carry
    store_low(p, out);
  }
  template <bool Random>
  static SSLOPS_INLINE void store(Half* p, F v, U noise) {
    if constexpr (Random) {
      const U sign = (U)v & 0x80000000u, magnitude = (U)v ^ sign;
      const U up = noise >> 19;
      const F large = (F)((magnitude + up) & ~0x1fffu);
      // beside 2^-14, float32's 13 last bits are the ones below the steps of a subnormal float16
      const F beside = (F)magnitude + kSmallestHalf;
      const F small = (F)(((U)beside + up) & ~0x1fffu) - kSmallestHalf;
      const U cut = (U)((F)magnitude < kSmallestHalf ? small : large);
      v = (F)(sign | (v == v ? cut : magnitude));
    }
#ifdef SSLOPS_F16C
    constexpr int kNearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
    if constexpr (W == 16) {
      const __m256i narrow = _mm512_cvtps_ph((__m512)v, kNearest);
      std::memcpy(p, &narrow, sizeof(narrow));
      return;
    }
    if constexpr (W == 8) {
      const __m128i narrow = _mm256_cvtps_ph((__m256)v, kNearest);
      std::memcpy(p, &narrow, sizeof(narrow));
      return;
    }
#endif
    const U bits = (U)v, magnitude = bits & 0x7fffffffu;
    U out = (magnitude - kRebias + (0xfffu + (bits >> 13 & 1u))) >> 13;
    out = out > 0x7c00u ? word(0x7c00u) : out;
    // beside 0.5, float32 ends where a subnormal float16 does
    const U subnormal = (U)((F)magnitude + 0.5f) - 0x3f000000u;
    out = (F)magnitude < kSmallestHalf ? subnormal : out;
    out = v == v ? out : word(0x7e00u);
    out |= bits >> 16 & 0x8000u;
    store_low(p, out);
  }

  static SSLOPS_INLINE U mix(U x) {
    x = (x ^ x >> 16) * 0x7feb352du;
    x = (x ^ x >> 15) * 0x846ca68bu;
    return x ^ x >> 16;
  }
  // Random words of elements n, n + 1, ...
  static SSLOPS_INLINE U random(int64_t n, EmaKey key) {
    U low;
    for (int k = 0; k < W; ++k) low[k] = static_cast<uint32_t>(k);
    const uint32_t first = static_cast<uint32_t>(n);
    low += first;
    const U high = static_cast<uint32_t>(n >> 32) - (U)(low < word(first));  // a mask is -1
    return mix(mix(low ^ key.k0) + key.k1 + high);
  }
};

template <class T>
SSLOPS_INLINE T blend(Near kind, T t, T s, double momentum, double weight) {
  using Real = decltype(t[0] + t[0]);
  if (kind == Near::kOnlySource) return s;
  return kind == Near::kTarget ? t + static_cast<Real>(weight) * (s - t)
                               : s + static_cast<Real>(momentum) * (t - s);
}

template <int W>
struct Ema {
  using Lanes = EmaLanes<W>;
  using F = typename Lanes::F;
  using D = typename Lanes::D;
  using U = typename Lanes::U;

  template <class T>
  static SSLOPS_INLINE D widen(const T* p) {
    return __builtin_convertvector(Lanes::load(p), D);
  }
  static SSLOPS_INLINE D widen(const double* p) { return Lanes::template read<D>(p); }

  // W elements from p and q, of which `element` is the first one's number.
  template <class T, class S, Near kind, bool Random>
  static SSLOPS_INLINE void block(T* p, const S* q, int64_t element, const EmaStep& step,
                                  EmaKey key) {
    constexpr bool wide = sizeof(T) == 8 || sizeof(S) == 8;
    U noise{};
    if (Random) noise = Lanes::random(element, key);
    if constexpr (wide) {
      const D mean = blend<D>(kind, widen(p), widen(q), step.momentum, step.weight);
      if constexpr (sizeof(T) == 8)
        std::memcpy(p, &mean, sizeof(mean));
      else
        Lanes::template store<Random>(p, __builtin_convertvector(mean, F), noise);
    } else {
      const F mean = blend<F>(kind, Lanes::load(p), Lanes::load(q), step.momentum, step.weight);
      Lanes::template store<Random>(p, mean, noise);
    }
  }

  template <class T, class S, Near kind, bool Random>
  static void run(T* p, const S* q, int64_t begin, int64_t end, const EmaStep& step, EmaKey key) {
    int64_t n = begin;
    for (; n + W <= end; n += W) block<T, S, kind, Random>(p + n, q + n, n, step, key);
    if (n == end) return;
    T target[W] = {};
    S source[W] = {};
    std::memcpy(target, p + n, (end - n) * sizeof(T));
    std::memcpy(source, q + n, (end - n) * sizeof(S));
    block<T, S, kind, Random>(target, source, n, step, key);
    std::memcpy(p + n, target, (end - n) * sizeof(T));
  }

  template <class T, class S, bool Random>
  static void choose(T* p, const S* q, int64_t begin, int64_t end, const EmaStep& step,
                     EmaKey key) {
    if (step.momentum == 0.0)
      run<T, S, Near::kOnlySource, Random>(p, q, begin, end, step, key);
    else if (step.weight <= 0.5)
      run<T, S, Near::kTarget, Random>(p, q, begin, end, step, key);
    else
      run<T, S, Near::kSource, Random>(p, q, begin, end, step, key);
  }

  template <class T, class S>
  static void span(void* target, const void* source, int64_t begin, int64_t end,
                   const EmaStep& step, EmaKey key) {
    T* p = static_cast<T*>(target);
    const S* q = static_cast<const S*>(source);
    if constexpr (sizeof(T) == 2) {
      if (step.stochastic) return choose<T, S, true>(p, q, begin, end, step, key);
    }
    choose<T, S, false>(p, q, begin, end, step, key);
  }

  // where nothing is converted, wider vectors only make memory slower: docs/tuning.md
  static constexpr int kPlain = W < 8 ? W : 8;

  static const EmaKernels& kernels() {
    static constexpr EmaKernels table{{
        {Ema<kPlain>::template span<float, float>, span<float, BFloat16>, span<float, Half>,
         span<float, double>},
        {span<BFloat16, float>, span<BFloat16, BFloat16>, span<BFloat16, Half>,
         span<BFloat16, double>},
        {span<Half, float>, span<Half, BFloat16>, span<Half, Half>, span<Half, double>},
        {span<double, float>, span<double, BFloat16>, span<double, Half>, span<double, double>},
    }};
    return table;
  }
};

}  // namespace
}  // namespace sslops
