// InfoNCE on the CPU, queries and negatives both trained, where it is known what multiple of each
// row's loss will be differentiated: all exponentials of a strip of queries (with columns, all
// similarities) are kept until the sums are known, so that every similarity is computed once, not
// twice. docs/math/info_nce.md.
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <algorithm>
#include <limits>
#include <tuple>

#include "isa/isa.h"
#include "ops/info_nce_problem.h"
#include "ops/reference.h"
#include "tiles/schedule.h"

namespace sslops {
namespace {

// What is kept may take this many floats, or as many as twice the rows of both sides.
constexpr int64_t kRoom = 1 << 20;

using Joint = decltype(std::tuple_cat(Statistics{}, Gradients{}));
using Plain = Joint(const at::Tensor&, const at::Tensor&, const OptionalTensor&,
                    const OptionalTensor&, const OptionalTensor&, const OptionalTensor&,
                    const OptionalTensor&, const OptionalTensor&, double, bool, bool, bool, bool);

void run_strips(const InfoNceProblem& all, const RowStrips& strips, double inverse, float* over) {
  const CrossProblem& p = all.p;
  const CrossKernels& kernels = cross(all.x.bf16);
  const int64_t tile = strips.size * kTileStride, kept = strips.tiles * tile;
  at::Tensor room = at::empty({strips.threads, kept + kCrossScratch}, at::kFloat);
  float* data = room.mutable_data_ptr<float>();
  const auto exponentials = [&](int64_t thread, int64_t n) {
    return data + thread * (kept + kCrossScratch) + n * tile;
  };
  std::vector<float> query(all.apart ? all.x.D * strips.threads : 0);
  for_each_tile(
      strips,
      [&](Range i, Range j, int64_t thread, int64_t n) {
        kernels.row_pass(p, i, j, exponentials(thread, n), exponentials(thread, strips.tiles));
      },
      [&](Range i, int64_t thread) {
        for (int64_t m = i.begin; m < std::min(i.end, all.x.M); ++m) {
          if (all.apart) {
            const float* row = all.x.row(m, query.data() + thread * all.x.D);
            p.target_similarity[m] =
                static_cast<float>(dot(row, all.keys.row(all.own[m], nullptr), all.x.D));
          }
          const double own = p.target_similarity[m] * inverse;
          over[m] = static_cast<float>(1.0 / (p.row_sum[m] + std::exp(own)));
        }
      },
      [&](Range i, Range j, int64_t thread, int64_t n) {
        kernels.column_pass(p, i, j, exponentials(thread, n), exponentials(thread, strips.tiles));
      });
}

Joint info_nce_joint(const at::Tensor& queries, const at::Tensor& keys,
                     const OptionalTensor& negatives, const OptionalTensor& targets,
                     const OptionalTensor& query_ids, const OptionalTensor& key_ids,
                     const OptionalTensor& weights, const OptionalTensor& scale,
                     double scale_factor, bool within, bool columns, bool normalize, bool stats) {
  if (queries.scalar_type() == at::kDouble) {
    static const auto plain = reference<Plain>("sslops::info_nce_joint_reference");
    return plain.call(queries, keys, negatives, targets, query_ids, key_ids, weights, scale,
                      scale_factor, within, columns, normalize, stats);
  }
  const double inverse = inverse_temperature(scale, scale_factor);
  const bool apart = negatives.has_value();
  const int64_t M = queries.size(0), N = columns ? keys.size(0) : 0;
  const auto f32 = queries.options().dtype(at::kFloat);
  const at::Tensor w = weights.has_value() ? *weights : at::ones({M}, f32);
  TORCH_CHECK_VALUE(w.numel() == M, "info_nce: weights must be [M] with M = ", M, ", got ",
                    w.sizes());
  TORCH_CHECK_VALUE(!columns || (N == M && !targets.has_value() && !apart),
                    "info_nce: columns need as many keys as queries, got ", N, " and ", M);
  Gradients found = room_for_gradients(queries, keys, negatives, {true, true, true}, true);
  if (!usable(inverse))
    return std::tuple_cat(without_statistics(M, N, stats), all_nan(std::move(found)));

  InfoNceProblem all(queries, keys, negatives, targets, query_ids, key_ids, inverse, within,
                     normalize);
  CrossProblem& p = all.p;
  const double own = inverse * std::sqrt(all.x.largest) * std::sqrt(all.positives().largest);
  const int64_t rows = all.x.rows, cols = all.y.rows, ld = all.x.ld, D = all.x.D;
  const int64_t room = std::max(kRoom, 2 * (rows + cols) * ld);
  const auto strips = row_strips(rows, cols, D, room);
  if (columns || p.online || !(own <= kLargestLogit) || !strips) {
    at::Tensor kept = at::empty({rows * cols <= room ? rows * cols : 0}, f32);
    float* similarities = kept.numel() > 0 ? kept.mutable_data_ptr<float>() : nullptr;
    const Statistics s = info_nce_statistics(all, inverse, columns, stats, similarities);
    const auto& [loss, lse, key_loss, key_lse, hit, key_hit] = s;
    return std::tuple_cat(
        s, info_nce_gradients(all, w, columns ? OptionalTensor(w) : OptionalTensor(),
                              {loss, lse, key_loss, key_lse}, inverse, normalize, std::move(found),
                              similarities));
  }

  at::Tensor vectors = at::zeros({5 * rows}, f32), best;
  p.row_sum = vectors.mutable_data_ptr<float>();
  p.target_similarity = p.row_sum + rows;
  float *over = p.target_similarity + rows, *weight = over + rows, *maximum = weight + rows;
  if (stats) {
    best = at::full({rows}, -std::numeric_limits<float>::infinity(), f32);
    p.row_best = best.mutable_data_ptr<float>();
  }
  const float grad_max = relative_weights(w, M, weight);
  p.inverse_sum = over;
  p.row_weight = weight;
  at::Tensor dx = at::zeros({rows, ld}, f32), dy = at::zeros({cols, ld}, f32);
  p.to_rows.dx = dx.mutable_data_ptr<float>();
  p.to_cols.dx = dy.mutable_data_ptr<float>();
  run_strips(all, *strips, inverse, over);

  const auto none = [&](const at::TensorOptions& of) { return at::empty({0}, of); };
  at::Tensor loss = at::empty({M}, f32), lse = at::empty({M}, f32);
  at::Tensor hit = at::empty({stats ? M : 0}, f32.dtype(at::kBool));
  finish_losses(M, maximum, p.row_sum, p.target_similarity, p.row_best, inverse, loss, lse, hit);
  const float* each = loss.const_data_ptr<float>();
  std::vector<float> pull(M);  // minus (1 - p) of the positive
  for (int64_t m = 0; m < M; ++m) {
    pull[m] = weight[m] * std::expm1(-each[m]);
    over[m] *= weight[m];
  }
  at::Tensor dk = apart ? at::zeros({all.keys.rows, ld}, f32) : dy;
  const Sums sums{p.to_rows.dx, dk.mutable_data_ptr<float>(), apart ? p.to_cols.dx : nullptr, over};
  const double inside = finish_gradients(all, sums, pull, inverse * grad_max, normalize, found);
  std::get<3>(found).fill_(grad_max * inside);
  return std::tuple_cat(
      Statistics{loss, lse, none(f32), none(f32), hit, none(f32.dtype(at::kBool))}, found);
}

}  // namespace
}  // namespace sslops

TORCH_LIBRARY_IMPL(sslops, CPU, m) { m.impl("info_nce_joint", &sslops::info_nce_joint); }
