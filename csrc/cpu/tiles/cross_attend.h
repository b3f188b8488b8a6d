// Queries that read a tile of keys after the other, as in attention: running maxima, sums and
// weighted means; docs/math/info_nce.md has the formulas. Rows are keys, columns are queries.
#pragma once
#include "tiles/cross_tiles.h"

namespace sslops {
namespace {

template <class E>
struct CrossAttend : Cross<E> {
  using Base = Cross<E>;
  using Tiles = typename Base::Tiles;
  using V = typename Base::V;
  using F = typename Base::F;
  using I = typename Base::I;
  using Base::W, Base::load_ids, Base::fill_ids, Base::select, Base::has_ids, Base::empty,
      Base::or_zero;

  static void attend(const CrossProblem& p, Range i, Range j, float* scratch) {
    if (empty(p, i, j, j, {p.first_key, p.first_key + p.M})) return;
    float* s = scratch;
    float* top = scratch + kTile * kTileStride + kTile * kHalfStride;  // [kTile]
    E::similarity(p, i, j, s);
    mask_columns(p, i, j, s);
    Tiles::column_maxima(i, j, s, top);
    for (int64_t c = 0; c < j.size(); ++c) {
      const int64_t n = j.begin + c;
      if (p.col_best && top[c] > p.col_best[n]) p.col_best[n] = top[c];
      top[c] *= p.scale2;
      const float old = p.col_max[n];
      if (top[c] > old) {
        const float shrink = __builtin_exp2f(old - top[c]);
        p.col_sum[n] *= shrink;
        float* mean = p.to_cols.dx + n * p.to_cols.ld;
        for (int64_t d = 0; d < p.to_cols.D; ++d) mean[d] *= shrink;
        p.col_max[n] = top[c];
      }
      top[c] = or_zero(p.col_max[n]);
    }
    for (int64_t r = 0; r < i.size(); ++r) {
      float* row = s + r * kTileStride;
      for (int64_t c = 0; c < j.size(); c += W) {
        const F e = V::template exp2<E::kDegree>(V::load(row + c) * p.scale2 - V::load(top + c));
        V::store(row + c, e);
        V::store(p.col_sum + j.begin + c, V::load(p.col_sum + j.begin + c) + e);
      }
    }
    E::accumulate(p, i, j, s, scratch + kTile * kTileStride, false, true);
  }
  // Calls use(row, column) for every column whose target is in the tile.
  template <class Use>
  static SSLOPS_INLINE void for_targets(const CrossProblem& p, Range j, Use&& use) {
    for (int64_t c = 0; p.targets && c < j.size(); ++c) {
      const int64_t r = p.targets[j.begin + c] - p.first_key;
      if (r >= 0 && r < p.M) use(r, c);
    }
  }
  static void mask_columns(const CrossProblem& p, Range i, Range j, float* s) {
    for_targets(p, j, [&](int64_t r, int64_t c) {
      if (p.target_similarity) p.target_similarity[j.begin + c] = s[r * kTileStride + c];
    });
    const F out = V::fill(p.masked);
    if (p.same_id_only || has_ids(p, i, j))
      for (int64_t r = 0; r < i.size(); ++r) {
        const int32_t id = p.row_id[i.begin + r];
        float* row = s + r * kTileStride;
        for (int64_t c = 0; c < j.size(); c += W) {
          const I same = id < 0 ? I{} : (load_ids(p.col_id + j.begin + c) == fill_ids(id));
          const F v = V::load(row + c);
          V::store(row + c, p.same_id_only ? select(same, v, out) : select(same, out, v));
        }
      }
    for_targets(p, j, [&](int64_t r, int64_t c) { s[r * kTileStride + c] = p.masked; });
    for (int64_t r = p.M; r < i.size(); ++r)
      for (int64_t c = 0; c < j.size(); ++c) s[r * kTileStride + c] = p.masked;
  }
};

}  // namespace
}  // namespace sslops
