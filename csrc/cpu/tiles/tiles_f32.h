// Tiles of similarities in float32 for one width of vectors; docs/math/nt_xent.md has the formulas.
//
// Included by a file of isa/, which sets the instruction set and chooses
//   W     floats in a vector
//   MR    rows of the register block
//   NV    vectors in a row of it; NV * W divides kPanel
// Reading order: register block, forward (plain tile, then any tile), backward.
#pragma once
#include "tiles/tiles.h"
#include "tiles/vec.h"

namespace sslops {
namespace {  // each including file has its own copy, compiled for its own instruction set

template <int W, int MR, int NV>
struct TilesF32 {
  using V = Vec<W>;
  using F = typename V::F;
  using I = typename V::I;
  static constexpr int NR = NV * W;
  static SSLOPS_INLINE I iota() {
    I v;
    for (int n = 0; n < W; ++n) v[n] = n;
    return v;
  }
  static_assert(kPanel % NR == 0);
  static_assert(MR % 4 == 0);  // the rows left over come in fours

  // acc[r][v] += sum_k a[r * row + k * step] * b[k * ldb + v * W ..]
  template <int R>
  static SSLOPS_INLINE void block(F (&acc)[R][NV], const float* a, int64_t row, int64_t step,
                                  const float* b, int64_t ldb, int64_t K) {
    for (int64_t k = 0; k < K; ++k) {
      F bv[NV];
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) bv[v] = V::load(b + k * ldb + v * W);
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) {
        const F ar = V::fill(a[r * row + k * step]);
#pragma GCC unroll 4
        for (int v = 0; v < NV; ++v) acc[r][v] += ar * bv[v];
      }
    }
  }

  // Calls use(acc, first row, first column) for every register block of similarities in the tile.
  template <class Use>
  static SSLOPS_INLINE void similarities(const TileProblem& p, Range i, Range j, Use&& use) {
    for (int64_t c = j.begin; c < j.end; c += NR) {
      const float* panel = p.panels + (c / kPanel) * p.D * kPanel + c % kPanel;
      int64_t r = i.begin;
      for (; r + MR <= i.end; r += MR) similarity_rows<MR>(p, panel, r, c, use);
      for (; r < i.end; r += 4) similarity_rows<4>(p, panel, r, c, use);
    }
  }
  template <int R, class Use>
  static SSLOPS_INLINE void similarity_rows(const TileProblem& p, const float* panel, int64_t r,
                                            int64_t c, Use&& use) {
    F acc[R][NV] = {};
    block<R>(acc, p.x + r * p.ld, p.ld, 1, panel, kPanel, p.D);
    use(acc, r, c);
  }

  // A tile without masks, positives or statistics: sums straight from the registers.
  // Not inlined: merged with the rest of `forward`, two accumulators leave their registers.
  static __attribute__((noinline)) void forward_plain(const TileProblem& p, Range i, Range j,
                                                      float* scratch) {
    float* row_lanes = scratch;              // [kTile, W]
    float* col_lanes = scratch + kTile * W;  // [kTile]
    for (int64_t n = 0; n < i.size() * W; ++n) row_lanes[n] = 0.0f;
    for (int64_t n = 0; n < j.size(); ++n) col_lanes[n] = 0.0f;
    similarities(p, i, j, [&](auto& acc, int64_t r0, int64_t c) __attribute__((always_inline)) {
      constexpr int R = sizeof(acc) / sizeof(acc[0]);
      float* col = col_lanes + (c - j.begin);
      float* row = row_lanes + (r0 - i.begin) * W;
      F sum[NV] = {};
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) {
        F lanes = V::load(row + r * W);
#pragma GCC unroll 4
        for (int v = 0; v < NV; ++v) {
          const F e = V::exp2_product(acc[r][v], p.scale2);
          lanes += e;
          sum[v] += e;
        }
        V::store(row + r * W, lanes);
      }
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) V::store(col + v * W, V::load(col + v * W) + sum[v]);
    });
    for (int64_t n = 0; n < i.size(); ++n)
      p.row_sum[i.begin + n] += V::sum(V::load(row_lanes + n * W));
    for (int64_t n = 0; n < j.size(); ++n) p.row_sum[j.begin + n] += col_lanes[n];
  }

  static void forward(const TileProblem& p, Range i, Range j, float* scratch) {
    if (!p.online && !p.stats && i.begin != j.begin && j.end <= p.M && !has_positive(p, i, j))
      return forward_plain(p, i, j, scratch);
    store_similarities(p, i, j, scratch);
    forward_stored<5>(p, i, j, scratch, scratch + kTile * kTileStride);
  }
  // s [kTile, kTileStride]
  static void store_similarities(const TileProblem& p, Range i, Range j, float* s) {
    similarities(p, i, j, [&](auto& acc, int64_t r0, int64_t c) __attribute__((always_inline)) {
      constexpr int R = sizeof(acc) / sizeof(acc[0]);
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
        for (int v = 0; v < NV; ++v)
          V::store(s + (r0 - i.begin + r) * kTileStride + (c - j.begin) + v * W, acc[r][v]);
    });
  }

  // Masks, positives, sums and statistics of a stored tile s [i, kTileStride]; work [2, kTile].
  template <int Degree>
  static void forward_stored(const TileProblem& p, Range i, Range j, float* s, float* work) {
    const bool diagonal = i.begin == j.begin;
    collect_positives(p, i, j, s);
    for (int64_t r = 0; r < i.size(); ++r) {
      float* row = s + r * kTileStride;
      if (diagonal) row[r] = p.masked;
      const int64_t first = i.begin + r < p.M ? (p.M < j.end ? p.M - j.begin : j.size()) : 0;
      for (int64_t c = first > 0 ? first : 0; c < j.size(); ++c) row[c] = p.masked;
    }
    float* col_max = work;
    float* col_sum = work + kTile;
    for (int64_t c = 0; c < j.size(); ++c) col_max[c] = col_sum[c] = 0.0f;
    if (p.online && !diagonal) {
      column_maxima(i, j, s, col_max);
      for (int64_t c = 0; c < j.size(); ++c) col_max[c] *= p.scale2;
    }
    for (int64_t r = 0; r < i.size(); ++r) {
      const float* row = s + r * kTileStride;
      const float row_max = p.online ? row_maximum(row, j.size()) * p.scale2 : 0.0f;
      F sum = {};
      for (int64_t c = 0; c < j.size(); c += W) {
        const F logit = V::load(row + c) * p.scale2;
        const F e = V::template exp2<Degree>(logit - row_max);
        sum += e;
        if (!diagonal) {
          const F down = p.online ? V::template exp2<Degree>(logit - V::load(col_max + c)) : e;
          V::store(col_sum + c, V::load(col_sum + c) + down);
        }
      }
      merge(p, i.begin + r, row_max, V::sum(sum));
    }
    if (!diagonal)
      for (int64_t c = 0; c < j.size(); ++c) merge(p, j.begin + c, col_max[c], col_sum[c]);
    if (p.stats) best_negatives(p, i, j, s, work);
  }

  // Calls use(row, column) for every pair of views of one sample in the tile, the self pair left
  // out.
  template <class Use>
  static SSLOPS_INLINE void for_positives(const TileProblem& p, Range i, Range j, Use&& use) {
    const int64_t end = j.end < p.M ? j.end : p.M;
    for (int64_t r = i.begin; r < i.end && r < p.M; ++r) {
      // the first column of r's sample that is not before the tile
      int64_t c = r % p.samples;
      if (c < j.begin) c += (j.begin - c + p.samples - 1) / p.samples * p.samples;
      for (; c < end; c += p.samples)
        if (c != r) use(r, c);
    }
  }
  static bool has_positive(const TileProblem& p, Range i, Range j) {
    if (i.size() + j.size() > p.samples) return true;
    // c - r = 0 modulo samples for some r in i and c in j
    const int64_t low = j.begin - i.end + 1, high = j.end - 1 - i.begin;
    const int64_t first = (low + p.M) / p.samples, last = (high + p.M) / p.samples;
    return first != last || (low + p.M) % p.samples == 0;
  }
  static void collect_positives(const TileProblem& p, Range i, Range j, const float* s) {
    const bool diagonal = i.begin == j.begin;
    for_positives(p, i, j, [&](int64_t r, int64_t c) {
      const float v = s[(r - i.begin) * kTileStride + (c - j.begin)];
      add_positive(p, r, v);
      if (!diagonal) add_positive(p, c, v);  // on the diagonal (c, r) comes by itself
    });
  }
  static SSLOPS_INLINE void add_positive(const TileProblem& p, int64_t row, float similarity) {
    p.positive[row] += similarity * p.scale2;
    if (p.stats && !(p.best_positive[row] >= similarity)) p.best_positive[row] = similarity;
  }
  static void best_negatives(const TileProblem& p, Range i, Range j, float* s, float* work) {
    for_positives(p, i, j, [&](int64_t r, int64_t c) {
      s[(r - i.begin) * kTileStride + (c - j.begin)] = p.masked;
    });
    for (int64_t r = 0; r < i.size(); ++r) {
      const float best = row_maximum(s + r * kTileStride, j.size());
      if (best > p.best_negative[i.begin + r]) p.best_negative[i.begin + r] = best;
    }
    if (i.begin == j.begin) return;
    column_maxima(i, j, s, work);
    for (int64_t c = 0; c < j.size(); ++c)
      if (work[c] > p.best_negative[j.begin + c]) p.best_negative[j.begin + c] = work[c];
  }
  static SSLOPS_INLINE float row_maximum(const float* row, int64_t n) {
    F best = V::fill(-__FLT_MAX__);
    for (int64_t c = 0; c < n; c += W) best = V::max(best, V::load(row + c));
    return V::max(best);
  }
  static void column_maxima(Range i, Range j, const float* s, float* best) {
    for (int64_t c = 0; c < j.size(); c += W) {
      F m = V::fill(-__FLT_MAX__);
      for (int64_t r = 0; r < i.size(); ++r) m = V::max(m, V::load(s + r * kTileStride + c));
      V::store(best + c, m);
    }
  }
  // Adds `sum` terms relative to `maximum` to the running pair of a row.
  static SSLOPS_INLINE void merge(const TileProblem& p, int64_t row, float maximum, float sum) {
    if (!p.online) {
      p.row_sum[row] += sum;
      return;
    }
    const float old = p.row_max[row], now = old < maximum ? maximum : old;
    p.row_sum[row] =
        p.row_sum[row] * __builtin_exp2f(old - now) + sum * __builtin_exp2f(maximum - now);
    p.row_max[row] = now;
  }

  static void backward(const TileProblem& p, Range i, Range j, float* scratch) {
    float* g = scratch;  // [kTile, kTileStride]
    similarities(p, i, j, [&](auto& acc, int64_t r0, int64_t c) __attribute__((always_inline)) {
      constexpr int R = sizeof(acc) / sizeof(acc[0]);
      float* out = g + (r0 - i.begin) * kTileStride + (c - j.begin);
      F wj[NV];
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) wj[v] = V::load(p.weight + c + v * W);
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) {
        const F wi = V::fill(p.weight[r0 + r]);
#pragma GCC unroll 4
        for (int v = 0; v < NV; ++v)
          V::store(out + r * kTileStride + v * W,
                   p.online ? pair_gradient(p, acc[r][v], r0 + r, c + v * W)
                            : V::exp2_product(acc[r][v], p.scale2) * (wi + wj[v]));
      }
    });
    const bool diagonal = i.begin == j.begin;
    if (diagonal)
      for (int64_t n = 0; n < i.size(); ++n) g[n * kTileStride + n] = 0.0f;
    float* panel = scratch + kTile * kTileStride;
    accumulate(p, i, j, g, kTileStride, 1, panel);
    if (!diagonal) accumulate(p, j, i, g, 1, kTileStride, panel);
  }
  static __attribute__((noinline)) F pair_gradient(const TileProblem& p, F s, int64_t r,
                                                   int64_t c) {
    const F logit = s * p.scale2;
    return p.weight[r] * V::exp2(logit - p.lse2[r]) +
           V::load(p.weight + c) * V::exp2(logit - V::load(p.lse2 + c));
  }
  // dx[to] += G x[from], where G_rk = g[r * row + k * step]. NR features of kDepth rows at a time
  // are copied to `panel` [kDepth, NR]: in x a wide row lies a page from the next, in the panel
  // beside it, and the panel stays in L1 together with the rows of G that meet it.
  static void accumulate(const TileProblem& p, Range to, Range from, const float* g, int64_t row,
                         int64_t step, float* panel) {
    constexpr int64_t kDepth = kTile / 2;
    for (int64_t d = 0; d < p.D; d += NR) {
      for (int64_t first = 0; first < from.size(); first += kDepth) {
        const int64_t K = first + kDepth < from.size() ? kDepth : from.size() - first;
        for (int64_t k = 0; k < K; ++k)
          std::memcpy(panel + k * NR, p.x + (from.begin + first + k) * p.ld + d,
                      NR * sizeof(float));
        const float* part = g + first * step;
        int64_t r = 0;
        for (; r + MR <= to.size(); r += MR)
          accumulate_rows<MR>(p, to.begin + r, d, part + r * row, row, step, panel, K);
        for (; r < to.size(); r += 4)
          accumulate_rows<4>(p, to.begin + r, d, part + r * row, row, step, panel, K);
      }
    }
  }
  template <int R>
  static SSLOPS_INLINE void accumulate_rows(const TileProblem& p, int64_t r0, int64_t d,
                                            const float* g, int64_t row, int64_t step,
                                            const float* panel, int64_t K) {
    F acc[R][NV];
    float* out = p.dx + r0 * p.ld + d;
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) acc[r][v] = V::load(out + r * p.ld + v * W);
    block<R>(acc, g, row, step, panel, NR, K);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) V::store(out + r * p.ld + v * W, acc[r][v]);
  }
};

}  // namespace
}  // namespace sslops
