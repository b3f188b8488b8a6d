// Tiles that are computed once and used twice: for the sums and gradients of rows, then, once the
// sums are known, for the gradients of columns; docs/math/info_nce.md has the formulas.
#pragma once
#include "tiles/cross_tiles.h"

namespace sslops {
namespace {

template <class E>
struct CrossJoint : Cross<E> {
  using Base = Cross<E>;
  using V = typename Base::V;
  using F = typename Base::F;
  using Base::W, Base::mask, Base::for_parts, Base::best;

  // e [i, kTileStride]: written by row_pass, read by column_pass, which visit the same parts
  static void row_pass(const CrossProblem& p, Range i, Range j, float* e, float* scratch) {
    for_parts(p, i, j, [&](Range a, Range b) {
      row_part(p, a, b, e + (a.begin - i.begin) * kTileStride, scratch);
    });
  }
  static void column_pass(const CrossProblem& p, Range i, Range j, float* e, float* scratch) {
    for_parts(p, i, j, [&](Range a, Range b) {
      column_part(p, a, b, e + (a.begin - i.begin) * kTileStride, scratch);
    });
  }

  static void row_part(const CrossProblem& p, Range i, Range j, float* e, float* scratch) {
    E::similarity(p, i, j, e);
    const bool masked = mask(p, i, j, e, /*collect=*/true);
    if (p.row_best) best(p, i, j, e, false, nullptr);
    for (int64_t r = 0; r < i.size(); ++r) {
      float* row = e + r * kTileStride;
      F sum = {};
      for (int64_t c = 0; c < j.size(); c += W) {
        const F v = V::load(row + c);
        const F each = masked ? V::template exp2<E::kDegree>(v * p.scale2)
                              : V::template exp2_product<E::kDegree>(v, p.scale2);
        V::store(row + c, each);
        sum += each;
      }
      p.row_sum[i.begin + r] += V::sum(sum);
    }
    E::accumulate(p, i, j, e, scratch, true, false);
  }

  static void column_part(const CrossProblem& p, Range i, Range j, float* e, float* scratch) {
    for (int64_t r = 0; r < i.size(); ++r) {
      float* row = e + r * kTileStride;
      // one after the other: of a light row with a large sum their product would be flushed
      const float inverse = p.inverse_sum[i.begin + r], weight = p.row_weight[i.begin + r];
      for (int64_t c = 0; c < j.size(); c += W)
        V::store(row + c, V::load(row + c) * inverse * weight);
    }
    E::accumulate(p, i, j, e, scratch, false, true);
  }
};

}  // namespace
}  // namespace sslops
