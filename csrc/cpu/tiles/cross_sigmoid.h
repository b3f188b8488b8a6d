// Losses and gradients of a tile of the pairwise sigmoid loss; docs/math/sigmoid_loss.md has the
// formulas.
#pragma once
#include "tiles/cross_tiles.h"

namespace sslops {
namespace {

template <class E>
struct CrossSigmoid : Cross<E> {
  using Base = Cross<E>;
  using Tiles = typename Base::Tiles;
  using V = typename Base::V;
  using F = typename Base::F;
  using I = typename Base::I;
  using Base::W, Base::load_ids, Base::fill_ids, Base::select, Base::has_ids;

  static void sigmoid(const CrossProblem& p, Range i, Range j, float* scratch, double* loss,
                      double* total) {
    float* s = scratch;
    E::similarity(p, i, j, s);
    const bool ids = has_ids(p, i, j);
    double sum_loss = 0.0, sum_g = 0.0;
    for (int64_t r = 0; r < i.size(); ++r) {
      float* row = s + r * kTileStride;
      const int64_t n = i.begin + r;
      F losses = {}, gs = {};
      for (int64_t c = 0; c < j.size(); c += W) {
        const I col_ids = load_ids(p.col_id + j.begin + c);
        sigmoid_vector(p, n, j.begin + c, row + c, ids ? col_ids : fill_ids(-1), losses, gs);
      }
      sum_loss += static_cast<double>(V::sum(losses));
      sum_g += static_cast<double>(V::sum(gs));
    }
    *loss += sum_loss;
    *total += sum_g;
    if (p.grad_rows || p.grad_cols)
      E::accumulate(p, i, j, s, scratch + kTile * kTileStride, p.grad_rows, p.grad_cols);
  }
  static SSLOPS_INLINE void sigmoid_vector(const CrossProblem& p, int64_t n, int64_t col, float* at,
                                           I ids, F& losses, F& gs) {
    const I column = Tiles::iota() + fill_ids(static_cast<int32_t>(col));
    const I positive = column == fill_ids(static_cast<int32_t>(n));
    const I edge = column >= fill_ids(static_cast<int32_t>(p.N));
    const int32_t id = p.row_id[n];
    const I same_id = id < 0 ? I{} : (ids == fill_ids(id));
    const I masked = n >= p.M ? fill_ids(-1) : (edge | (same_id & ~positive));
    F l = V::load(at) * p.scale + p.bias;
    l = select(positive, -l, l);
    const F size = select(l < F{}, -l, l);
    const F t = V::template exp2<5>(size * -1.44269504f);  // exp(-|l|)
    const F inverse = 1.0f / (1.0f + t);
    const F loss = V::max(l, F{}) + V::log1p(t);  // NaN if l is
    F g = select(l < F{}, t * inverse, inverse);
    g = select(l == l, g, l);  // NaN is not compared away
    g = select(positive, -g, g);
    losses += select(masked, F{}, loss);
    g = select(masked, F{}, g);
    gs += g;
    V::store(at, g);
  }
};

}  // namespace
}  // namespace sslops
