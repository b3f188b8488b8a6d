// InfoNCE on the CPU, queries and negatives both trained, where it is known what multiple of each
// row's loss will be differentiated: all exponentials of a strip of queries are kept until its sums
// are known, so that every similarity is computed once, not twice. docs/math/info_nce.md.
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <algorithm>
#include <limits>
#include <tuple>

#include "info_nce_problem.h"
#include "level.h"
#include "strips.h"

namespace sslops {
namespace {

// Strips may take this many floats, or as many as twice the rows of both sides.
constexpr int64_t kRoom = 1 << 20;

using Joint =
    std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor>;
using Plain = Joint(const at::Tensor&, const at::Tensor&, const OptionalTensor&,
                    const OptionalTensor&, const OptionalTensor&, const OptionalTensor&,
                    const OptionalTensor&, const OptionalTensor&, double, bool, bool, bool);

void run_strips(const InfoNceProblem& all, const Strips& strips, double inverse, float* over) {
  const CrossProblem& p = all.p;
  const CrossKernels& kernels = cross(all.x.bf16);
  const int64_t tile = strips.size * kTileStride, kept = strips.tiles * tile;
  at::Tensor room = at::empty({strips.threads, kept + kCrossScratch}, at::kFloat);
  float* data = room.mutable_data_ptr<float>();
  const auto exponentials = [&](int64_t thread, int64_t n) {
    return data + thread * (kept + kCrossScratch) + n * tile;
  };
  std::vector<float> query(all.apart ? all.x.D * strips.threads : 0);
  for_each_strip(
      strips,
      [&](Range i, Range j, int64_t thread, int64_t n) {
        kernels.gather(p, i, j, exponentials(thread, n), exponentials(thread, strips.tiles));
      },
      [&](Range i, int64_t thread) {
        for (int64_t m = i.begin; m < std::min(i.end, all.x.M); ++m) {
          if (all.apart) {
            const float* row = all.x.row(m, query.data() + thread * all.x.D);
            p.row_own[m] = static_cast<float>(dot(row, all.keys.row(all.own[m], nullptr), all.x.D));
          }
          const double own = p.row_own[m] * inverse;
          over[m] = static_cast<float>(1.0 / (p.row_sum[m] + std::exp(own)));
        }
      },
      [&](Range i, Range j, int64_t thread, int64_t n) {
        kernels.spread(p, i, j, exponentials(thread, n), exponentials(thread, strips.tiles));
      });
}

Joint info_nce_joint(const at::Tensor& queries, const at::Tensor& keys,
                     const OptionalTensor& negatives, const OptionalTensor& targets,
                     const OptionalTensor& query_ids, const OptionalTensor& key_ids,
                     const OptionalTensor& weights, const OptionalTensor& scale,
                     double scale_factor, bool within, bool normalize, bool stats) {
  if (queries.scalar_type() == at::kDouble) {
    static const auto plain = reference<Plain>("sslops::info_nce_joint_reference");
    return plain.call(queries, keys, negatives, targets, query_ids, key_ids, weights, scale,
                      scale_factor, within, normalize, stats);
  }
  const double inverse = inverse_temperature(scale, scale_factor);
  const bool apart = negatives.has_value();
  const int64_t M = queries.size(0);
  const auto f32 = queries.options().dtype(at::kFloat);
  const at::Tensor w = weights.has_value() ? *weights : at::ones({M}, f32);
  TORCH_CHECK_VALUE(w.numel() == M, "info_nce: weights must be [M] with M = ", M, ", got ",
                    w.sizes());
  const auto in_two_passes = [&] {
    auto [loss, lse, none, also_none, hit, no_hit] =
        info_nce_fwd(queries, keys, negatives, targets, query_ids, key_ids, scale, scale_factor,
                     within, false, normalize, stats);
    auto [dqueries, dkeys, dnegatives, dscale] = info_nce_gradients(
        w, {}, queries, keys, negatives, targets, query_ids, key_ids, loss, lse, none, also_none,
        scale, scale_factor, within, normalize, {true, true, apart}, true);
    return Joint{loss, lse, hit, dqueries, dkeys, dnegatives, dscale};
  };
  if (!usable(inverse)) return in_two_passes();

  InfoNceProblem all(queries, keys, negatives, targets, query_ids, key_ids, inverse, within,
                     normalize);
  CrossProblem& p = all.p;
  const double own = inverse * std::sqrt(all.x.largest) * std::sqrt(all.positives().largest);
  const int64_t rows = all.x.rows, cols = all.y.rows, ld = all.x.ld, D = all.x.D;
  const auto strips = make_strips(rows, cols, D, std::max(kRoom, 2 * (rows + cols) * ld));
  if (p.online || !(own <= kLargestLogit) || !strips) return in_two_passes();

  at::Tensor vectors = at::zeros({5 * rows}, f32), best;
  p.row_sum = vectors.mutable_data_ptr<float>();
  p.row_own = p.row_sum + rows;
  float *over = p.row_own + rows, *weight = over + rows, *maximum = weight + rows;
  if (stats) {
    best = at::full({rows}, -std::numeric_limits<float>::infinity(), f32);
    p.row_best = best.mutable_data_ptr<float>();
  }
  const float unit = relative_weights(w, M, weight);
  p.row_over = over;
  p.row_weight = weight;
  at::Tensor dx = at::zeros({rows, ld}, f32), dy = at::zeros({cols, ld}, f32);
  p.to_rows.dx = dx.mutable_data_ptr<float>();
  p.to_cols.dx = dy.mutable_data_ptr<float>();
  run_strips(all, *strips, inverse, over);

  Joint out{at::empty({M}, f32),
            at::empty({M}, f32),
            at::empty({stats ? M : 0}, f32.dtype(at::kBool)),
            at::empty(queries.sizes(), f32),
            at::empty(keys.sizes(), f32),
            apart ? at::empty(negatives->sizes(), f32) : at::empty({0}, f32),
            at::empty({}, f32)};
  auto& [loss, lse, hit, dqueries, dkeys, dnegatives, dscale] = out;
  finish_losses(M, maximum, p.row_sum, p.row_own, p.row_best, inverse, loss, lse, hit);
  const float* each = loss.const_data_ptr<float>();
  std::vector<float> pull(M);  // minus (1 - p) of the positive
  at::parallel_for(0, M, std::max<int64_t>(1, 32768 / D), [&](int64_t begin, int64_t end) {
    for (int64_t m = begin; m < end; ++m) {
      pull[m] = weight[m] * std::expm1(-each[m]);
      for (int64_t d = 0; d < D; ++d) p.to_rows.dx[m * ld + d] *= over[m] * weight[m];
    }
  });
  at::Tensor dk = apart ? at::zeros({all.keys.rows, ld}, f32) : dy;
  add_positives(all, pull, p.to_rows.dx, dk.mutable_data_ptr<float>(), ld);
  const double by = inverse * unit;
  dscale.fill_(unit * finish_gradient(all.x, p.to_rows.dx, ld, by, normalize, dqueries));
  finish_gradient(all.positives(), dk.const_data_ptr<float>(), ld, by, normalize, dkeys);
  if (apart) finish_gradient(all.y, p.to_cols.dx, ld, by, false, dnegatives);
  return out;
}

}  // namespace
}  // namespace sslops

TORCH_LIBRARY_IMPL(sslops, CPU, m) { m.impl("info_nce_joint", &sslops::info_nce_joint); }
