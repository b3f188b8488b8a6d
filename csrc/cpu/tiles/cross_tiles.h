// Tiles of similarities between two sets of rows; docs/math/info_nce.md has the formulas.
//
// Included by a file of isa/ with an engine E that has
//   Tiles                      vectors and row helpers of its width
//   kDegree                    of the polynomial of 2^f
//   similarity(p, i, j, s)     s [i, kTileStride] = <x_i, y_j>
//   accumulate(p, i, j, s, work, rows, cols)   dx_i += S y_j, dy_j += S^T x_i
// Reading order: mask, forward, backward. cross_joint.h, cross_sigmoid.h and cross_attend.h have
// what else runs on such tiles, cross_kernels.h the table of all.
#pragma once
#include "tiles/cross.h"
#include "tiles/tiles_f32.h"

namespace sslops {
namespace {

template <class E>
struct Cross {
  using Tiles = typename E::Tiles;
  using V = typename Tiles::V;
  using F = typename V::F;
  using I = typename V::I;
  static constexpr int W = V::width;

  static SSLOPS_INLINE I load_ids(const int32_t* p) {
    I v;
    std::memcpy(&v, p, sizeof(v));
    return v;
  }
  static SSLOPS_INLINE I fill_ids(int32_t n) { return n - I{}; }
  static SSLOPS_INLINE F select(I mask, F a, F b) { return mask ? a : b; }

  // Whether the ranges of two lists of ids have a common value.
  static bool overlap(const int32_t* a, Range i, const int32_t* b, Range j) {
    int32_t low[2] = {INT32_MAX, INT32_MAX}, high[2] = {INT32_MIN, INT32_MIN};
    const int32_t* list[2] = {a + i.begin, b + j.begin};
    const int64_t size[2] = {i.size(), j.size()};
    for (int n = 0; n < 2; ++n)
      for (int64_t k = 0; k < size[n]; ++k) {
        low[n] = list[n][k] < low[n] ? list[n][k] : low[n];
        high[n] = list[n][k] > high[n] ? list[n][k] : high[n];
      }
    return low[0] <= high[1] && low[1] <= high[0] && high[0] >= 0 && high[1] >= 0;
  }
  static bool has_ids(const CrossProblem& p, Range i, Range j) {
    return p.row_id && overlap(p.row_id, i, p.col_id, j);
  }
  // `same_id_only`, and no id of the rows is one of the columns nor any target there: every pair is
  // masked.
  static bool empty(const CrossProblem& p, Range i, Range j, Range owners, Range others) {
    if (!p.same_id_only || has_ids(p, i, j)) return false;
    for (int64_t n = owners.begin; p.targets && n < owners.end; ++n)
      if (p.targets[n] >= others.begin && p.targets[n] < others.end) return false;
    return true;
  }

  // Calls part(rows, columns) for the rectangles of a tile in which `same_id_only` leaves a pair:
  // sequences are shorter than a tile.
  template <class Part>
  static SSLOPS_INLINE void for_parts(const CrossProblem& p, Range i, Range j, Part&& part) {
    if (!p.same_id_only) return part(i, j);
    constexpr int64_t kPart = 2 * kPanel;
    Range rows{i.begin, i.begin}, cols{j.end, j.end};  // rows so far that see the same columns
    for (int64_t r = i.begin; r < i.end; r += kPart) {
      const Range some{r, r + kPart < i.end ? r + kPart : i.end};
      Range seen{j.end, j.end};
      for (int64_t c = j.begin; c < j.end; c += kPart) {
        const Range other{c, c + kPart < j.end ? c + kPart : j.end};
        if (empty(p, some, other, some, other)) continue;
        seen = {seen.begin < c ? seen.begin : c, other.end};
      }
      if (seen.begin != cols.begin || seen.end != cols.end) {
        if (rows.size() > 0 && cols.size() > 0) part(rows, cols);
        rows.begin = r;
        cols = seen;
      }
      rows.end = some.end;
    }
    if (rows.size() > 0 && cols.size() > 0) part(rows, cols);
  }

  // Masks the pairs of a tile; true if there are any. `collect`: write target_similarity.
  static bool mask(const CrossProblem& p, Range i, Range j, float* s, bool collect) {
    bool any = false;
    const F out = V::fill(p.masked);
    const bool ids = p.same_id_only || has_ids(p, i, j);
    const int64_t edge = p.N < j.end ? p.N - j.begin : j.size();
    for (int64_t r = 0; r < i.size(); ++r) {
      float* row = s + r * kTileStride;
      const int64_t target = p.targets ? p.targets[i.begin + r] - j.begin : -1;
      const bool in_tile = target >= 0 && target < edge;
      if (collect && in_tile && p.target_similarity) p.target_similarity[i.begin + r] = row[target];
      if (ids) {
        const int32_t id = p.row_id[i.begin + r];
        for (int64_t c = 0; c < j.size(); c += W) {
          const I same = load_ids(p.col_id + j.begin + c) == fill_ids(id);
          const F v = V::load(row + c);
          const bool never = id < 0;
          V::store(row + c, p.same_id_only ? (never ? out : select(same, v, out))
                                           : (never ? v : select(same, out, v)));
        }
        any = true;
      }
      if (in_tile) row[target] = p.masked, any = true;
      const int64_t first = p.symmetric && i.begin + r >= p.M ? 0 : edge;
      for (int64_t c = first > 0 ? first : 0; c < j.size(); ++c) row[c] = p.masked, any = true;
    }
    return any;
  }

  // The maximum of masked pairs alone: the terms relative to zero vanish.
  static SSLOPS_INLINE float or_zero(float top) { return top < 0.5f * kMasked ? 0.0f : top; }

  static void forward(const CrossProblem& p, Range i, Range j, float* scratch) {
    for_parts(p, i, j, [&](Range a, Range b) { forward_part(p, a, b, scratch); });
  }
  static void forward_part(const CrossProblem& p, Range i, Range j, float* scratch) {
    float* s = scratch;
    float* col_max = scratch + kTile * kTileStride;
    float* col_sum = col_max + kTile;
    E::similarity(p, i, j, s);
    if (p.saved) copy_tile(i, j, s, kTileStride, saved_tile(p, i, j), p.saved_ld);
    const bool masked = mask(p, i, j, s, /*collect=*/true);
    const bool symmetric = p.symmetric && !(p.shared && i.begin == j.begin);
    if (p.row_best) best(p, i, j, s, symmetric, col_max);
    for (int64_t c = 0; c < j.size(); ++c) col_max[c] = col_sum[c] = 0.0f;
    if (p.online && symmetric) {
      Tiles::column_maxima(i, j, s, col_max);
      for (int64_t c = 0; c < j.size(); ++c) col_max[c] = or_zero(col_max[c] * p.scale2);
    }
    for (int64_t r = 0; r < i.size(); ++r) {
      const float* row = s + r * kTileStride;
      const float top = p.online ? or_zero(Tiles::row_maximum(row, j.size()) * p.scale2) : 0.0f;
      F sum = {};
      for (int64_t c = 0; c < j.size(); c += W) {
        const F v = V::load(row + c);
        const F e = masked || p.online ? V::template exp2<E::kDegree>(v * p.scale2 - top)
                                       : V::template exp2_product<E::kDegree>(v, p.scale2);
        sum += e;
        if (!symmetric) continue;
        const F down =
            p.online ? V::template exp2<E::kDegree>(v * p.scale2 - V::load(col_max + c)) : e;
        V::store(col_sum + c, V::load(col_sum + c) + down);
      }
      merge(p.online, p.row_max[i.begin + r], p.row_sum[i.begin + r], top, V::sum(sum));
    }
    if (!symmetric) return;
    for (int64_t c = 0; c < j.size(); ++c)
      merge(p.online, p.col_max[j.begin + c], p.col_sum[j.begin + c], col_max[c], col_sum[c]);
  }
  static void best(const CrossProblem& p, Range i, Range j, const float* s, bool symmetric,
                   float* work) {
    for (int64_t r = 0; r < i.size(); ++r) {
      const float each = Tiles::row_maximum(s + r * kTileStride, j.size());
      if (each > p.row_best[i.begin + r]) p.row_best[i.begin + r] = each;
    }
    if (!symmetric) return;
    Tiles::column_maxima(i, j, s, work);
    for (int64_t c = 0; c < j.size(); ++c)
      if (work[c] > p.col_best[j.begin + c]) p.col_best[j.begin + c] = work[c];
  }
  // Adds `more` terms relative to `top` to the running pair.
  static SSLOPS_INLINE void merge(bool online, float& maximum, float& sum, float top, float more) {
    if (!online) {
      sum += more;
      return;
    }
    if (more == 0.0f) return;  // every pair is masked: there is no maximum
    const float now = maximum < top ? top : maximum;
    sum = sum * __builtin_exp2f(maximum - now) + more * __builtin_exp2f(top - now);
    maximum = now;
  }

  static float* saved_tile(const CrossProblem& p, Range i, Range j) {
    return p.saved + i.begin * p.saved_ld + j.begin;
  }
  static void copy_tile(Range i, Range j, const float* from, int64_t step, float* to, int64_t ld) {
    for (int64_t r = 0; r < i.size(); ++r)
      for (int64_t c = 0; c < j.size(); c += W)
        V::store(to + r * ld + c, V::load(from + r * step + c));
  }

  static void backward(const CrossProblem& p, Range i, Range j, float* scratch) {
    for_parts(p, i, j, [&](Range a, Range b) { backward_part(p, a, b, scratch); });
  }
  static void backward_part(const CrossProblem& p, Range i, Range j, float* scratch) {
    float* s = scratch;
    if (p.saved)
      copy_tile(i, j, saved_tile(p, i, j), p.saved_ld, s, kTileStride);
    else
      E::similarity(p, i, j, s);
    const bool diagonal = p.shared && i.begin == j.begin;
    const bool masked = mask(p, i, j, s, /*collect=*/false);
    const bool positives = p.label && overlap(p.label, i, p.label, j);
    for (int64_t r = 0; r < i.size(); ++r) {
      float* row = s + r * kTileStride;
      const int64_t n = i.begin + r;
      if (positives)
        gradient_row<true>(p, n, j, row, masked);
      else
        gradient_row<false>(p, n, j, row, masked);
    }
    E::accumulate(p, i, j, s, scratch + kTile * kTileStride, p.grad_rows, p.grad_cols && !diagonal);
  }
  template <bool Positives>
  static SSLOPS_INLINE void gradient_row(const CrossProblem& p, int64_t n, Range j, float* row,
                                         bool masked) {
    constexpr int D = E::kDegree;
    const float wi = p.row_weight[n];
    const float li = p.row_lse2[n];
    for (int64_t c = 0; c < j.size(); c += W) {
      const F v = V::load(row + c);
      const F logit = v * p.scale2;
      F g;
      if (!p.symmetric) {
        g = wi * V::template exp2<D>(logit - li);
      } else if (p.online) {
        g = wi * V::template exp2<D>(logit - li) +
            V::load(p.col_weight + j.begin + c) *
                V::template exp2<D>(logit - V::load(p.col_lse2 + j.begin + c));
      } else {
        const F e = masked ? V::template exp2<D>(logit) : V::template exp2_product<D>(v, p.scale2);
        g = e * (wi + V::load(p.col_weight + j.begin + c));
      }
      if constexpr (Positives) {
        const I same = load_ids(p.label + j.begin + c) == fill_ids(p.label[n]);
        F pull;
        if (p.positive_lse2)
          pull = p.positive_weight[n] * V::template exp2<D>(logit - p.positive_lse2[n]) +
                 V::load(p.positive_weight + j.begin + c) *
                     V::template exp2<D>(logit - V::load(p.positive_lse2 + j.begin + c));
        else
          pull = p.positive_weight[n] + V::load(p.positive_weight + j.begin + c);
        // masked: the row itself, or past the edge
        const I real = same & (v > V::fill(0.5f * p.masked));
        if (p.label[n] >= 0) g = select(real, g - pull, g);
      }
      V::store(row + c, g);
    }
  }
};

template <class T>
struct EngineF32 {
  using Tiles = T;
  static constexpr int kDegree = 5;
  static void similarity(const CrossProblem& p, Range i, Range j, float* s) {
    Tiles::store_similarities(p.similar, i, j, s);
  }
  static void accumulate(const CrossProblem& p, Range i, Range j, const float* s, float* work,
                         bool rows, bool cols) {
    if (rows) Tiles::accumulate(p.to_rows, i, j, s, kTileStride, 1, work);
    if (cols) Tiles::accumulate(p.to_cols, j, i, s, 1, kTileStride, work);
  }
};

}  // namespace
}  // namespace sslops
