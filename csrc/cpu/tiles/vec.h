// Vectors of W floats on the compiler's own vector types: the same source is SSE, AVX2, AVX-512 or
// NEON, by what the including file is compiled for. Everything is inlined into that file, so that
// no function compiled for one instruction set can be linked in place of another.
#pragma once
#include <cstdint>
#include <cstring>

#define SSLOPS_INLINE inline __attribute__((always_inline))

namespace sslops {
namespace {

template <int W>
struct Vec {
  typedef float F __attribute__((vector_size(4 * W)));
  typedef int32_t I __attribute__((vector_size(4 * W)));
  static constexpr int width = W;

  static SSLOPS_INLINE F load(const float* p) {
    F v;
    std::memcpy(&v, p, sizeof(v));
    return v;
  }
  static SSLOPS_INLINE void store(float* p, F v) { std::memcpy(p, &v, sizeof(v)); }
  // s - 0 is s for every s, so only the broadcast is left; 0 + s would turn -0 into 0.
  static SSLOPS_INLINE F fill(float s) { return s - F{}; }

  // In pairs, always in the same order, so that a sum has the same bits on every run.
  static SSLOPS_INLINE float sum(F v) {
    float lanes[W];
    store(lanes, v);
    for (int n = W / 2; n > 0; n /= 2)
      for (int k = 0; k < n; ++k) lanes[k] += lanes[k + n];
    return lanes[0];
  }
  static SSLOPS_INLINE F max(F a, F b) { return a < b ? b : a; }
  static SSLOPS_INLINE float max(F v) {
    float lanes[W];
    store(lanes, v);
    float best = lanes[0];
    for (int k = 1; k < W; ++k) best = best < lanes[k] ? lanes[k] : best;
    return best;
  }

  // 2^(s * k) for |s * k| < 126: round to n, polynomial on the rest f in [-1/2, 1/2], add n to the
  // exponent. Relative error of the polynomial: 9.2e-8 (degree 5), 2.8e-6 (degree 4; for inputs
  // that were rounded to bfloat16). NaN stays NaN if its low bits are clear, as in the quiet NaN.
  template <int Degree = 5>
  static SSLOPS_INLINE F exp2_product(F s, float k) {
    const F t = s * k + kRound;
    const F f = s * k - (t - kRound);
    return shift_exponent(polynomial<Degree>(f), t);
  }
  // 2^v for any v; 0 below -126 and 2^126 above 126.
  template <int Degree = 5>
  static SSLOPS_INLINE F exp2(F v) {
    const F low = fill(-126.0f), high = fill(126.0f);
    const F c = v < low ? low : (v > high ? high : v);  // NaN passes through
    const F t = c + kRound;
    const F e = shift_exponent(polynomial<Degree>(c - (t - kRound)), t);
    return v < low ? F{} : e;
  }
  // log(1 + t) for t in [0, 1]; relative error 3e-8 and the rounding of its products.
  static SSLOPS_INLINE F log1p(F t) {
    F p = t * 5.12610214e-3f - 2.90740647e-2f;
    p = p * t + 7.75160867e-2f;
    p = p * t - 1.36022476e-1f;
    p = p * t + 1.90768807e-1f;
    p = p * t - 2.48353990e-1f;
    p = p * t + 3.33181217e-1f;
    p = p * t - 4.99994450e-1f;
    p = p * t + 9.99999966e-1f;
    return p * t;
  }

 private:
  // 1.5 * 2^23: adding it leaves the nearest integer in the low bits of the sum.
  static constexpr float kRound = 12582912.0f;

  template <int Degree>
  static SSLOPS_INLINE F polynomial(F f) {
    // Minimax in the relative error over [-1/2, 1/2], with 2^0 = 1 exact.
    if constexpr (Degree == 4) {
      F p = f * 9.582853169e-3f + 5.590642504e-2f;
      p = p * f + 2.402409861e-1f;
      p = p * f + 6.931241934e-1f;
      return p * f + 1.0f;
    } else {
      F p = f * 1.326472725e-3f + 9.671512688e-3f;
      p = p * f + 5.550733744e-2f;
      p = p * f + 2.402224208e-1f;
      p = p * f + 6.931469776e-1f;
      return p * f + 1.0f;
    }
  }
  static SSLOPS_INLINE F shift_exponent(F p, F t) { return (F)((I)p + ((I)t << 23)); }
};

}  // namespace
}  // namespace sslops
