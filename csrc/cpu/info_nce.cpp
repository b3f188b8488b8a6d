// InfoNCE on the CPU, queries and negatives both trained: row (and column) statistics, then both
// gradients. Memory is O((M + N) D); docs/math/info_nce.md has the formulas.
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <algorithm>
#include <limits>

#include "info_nce_problem.h"
#include "level.h"

namespace sslops {
namespace {

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
constexpr float kLow = -std::numeric_limits<float>::infinity();

using Forward = Statistics(const at::Tensor&, const at::Tensor&, const OptionalTensor&,
                           const OptionalTensor&, const OptionalTensor&, const OptionalTensor&,
                           const OptionalTensor&, double, bool, bool, bool, bool);
using Backward = Gradients(const at::Tensor&, const OptionalTensor&, const at::Tensor&,
                           const at::Tensor&, const OptionalTensor&, const OptionalTensor&,
                           const OptionalTensor&, const OptionalTensor&, const at::Tensor&,
                           const at::Tensor&, const at::Tensor&, const at::Tensor&,
                           const OptionalTensor&, double, bool, bool, std::array<bool, 3>);

}  // namespace

Statistics info_nce_fwd(const at::Tensor& queries, const at::Tensor& keys,
                        const OptionalTensor& negatives, const OptionalTensor& targets,
                        const OptionalTensor& query_ids, const OptionalTensor& key_ids,
                        const OptionalTensor& scale, double scale_factor, bool within, bool columns,
                        bool normalize, bool stats) {
  if (queries.scalar_type() == at::kDouble) {
    static const auto plain = reference<Forward>("sslops::info_nce_fwd_reference");
    return plain.call(queries, keys, negatives, targets, query_ids, key_ids, scale, scale_factor,
                      within, columns, normalize, stats);
  }
  const double inverse = inverse_temperature(scale, scale_factor);
  const int64_t M = queries.size(0), N = columns ? keys.size(0) : 0;
  const auto f32 = queries.options().dtype(at::kFloat), flags = f32.dtype(at::kBool);
  Statistics out{at::empty({M}, f32),
                 at::empty({M}, f32),
                 at::empty({N}, f32),
                 at::empty({N}, f32),
                 at::empty({stats ? M : 0}, flags),
                 at::empty({stats ? N : 0}, flags)};
  auto& [loss, lse, key_loss, key_lse, hit, key_hit] = out;
  if (!usable(inverse)) {
    for (auto* each : {&loss, &lse, &key_loss, &key_lse}) each->fill_(kNan);
    hit.fill_(false);
    key_hit.fill_(false);
    return out;
  }
  TORCH_CHECK_VALUE(!columns || (N == M && !targets.has_value() && !negatives.has_value()),
                    "info_nce: columns need as many keys as queries, got ", N, " and ", M);

  InfoNceProblem all(queries, keys, negatives, targets, query_ids, key_ids, inverse, within,
                     normalize);
  CrossProblem& p = all.p;
  p.columns = columns;
  const int64_t rows = all.x.rows, cols = columns ? all.y.rows : 0;
  at::Tensor sums = at::zeros({3 * rows + 2 * cols}, f32), best;
  p.row_sum = sums.mutable_data_ptr<float>();
  p.row_max = p.row_sum + rows;
  p.row_own = p.row_max + rows;
  p.col_sum = p.row_own + rows;
  p.col_max = p.col_sum + cols;
  std::fill(p.row_max, p.row_max + rows, p.online ? kMasked : 0.0f);
  std::fill(p.col_max, p.col_max + cols, p.online ? kMasked : 0.0f);
  if (stats) {
    best = at::full({rows + cols}, kLow, f32);
    p.row_best = best.mutable_data_ptr<float>();
    p.col_best = p.row_best + rows;
  }
  all.run(cross(all.x.bf16).forward);
  std::vector<float> query(all.x.D);
  for (int64_t m = 0; all.apart && m < M; ++m)
    p.row_own[m] = static_cast<float>(
        dot(all.x.row(m, query.data()), all.keys.row(all.own[m], nullptr), all.x.D));

  finish_losses(M, p.row_max, p.row_sum, p.row_own, p.row_best, inverse, loss, lse, hit);
  if (columns)
    finish_losses(N, p.col_max, p.col_sum, p.row_own, p.col_best, inverse, key_loss, key_lse,
                  key_hit);
  return out;
}

Gradients info_nce_gradients(const at::Tensor& grad_loss, const OptionalTensor& grad_key_loss,
                             const at::Tensor& queries, const at::Tensor& keys,
                             const OptionalTensor& negatives, const OptionalTensor& targets,
                             const OptionalTensor& query_ids, const OptionalTensor& key_ids,
                             const at::Tensor& loss, const at::Tensor& lse,
                             const at::Tensor& key_loss, const at::Tensor& key_lse,
                             const OptionalTensor& scale, double scale_factor, bool within,
                             bool normalize, std::array<bool, 3> needs, bool wide) {
  const double inverse = inverse_temperature(scale, scale_factor);
  const bool apart = negatives.has_value(), columns = grad_key_loss.has_value();
  needs[2] = needs[2] && apart;
  const auto f32 = queries.options().dtype(at::kFloat);
  const auto result = [&](bool needed, const at::Tensor& like) {
    return at::empty(needed ? like.sizes() : at::IntArrayRef{0}, wide ? f32 : like.options());
  };
  Gradients out{result(needs[0], queries), result(needs[1], keys),
                result(needs[2], apart ? *negatives : lse), at::full({}, kNan, f32)};
  auto& [dqueries, dkeys, dnegatives, dscale] = out;
  if (!usable(inverse)) {
    for (auto* each : {&dqueries, &dkeys, &dnegatives}) each->fill_(kNan);
    return out;
  }

  InfoNceProblem all(queries, keys, negatives, targets, query_ids, key_ids, inverse, within,
                     normalize);
  CrossProblem& p = all.p;
  const int64_t M = all.x.M, rows = all.x.rows, cols = all.y.rows, ld = all.x.ld;
  TORCH_CHECK_VALUE(grad_loss.numel() == M && loss.numel() == M && lse.numel() == M,
                    "info_nce: grad_loss, loss and lse must be [M] with M = ", M, ", got ",
                    grad_loss.sizes(), ", ", loss.sizes(), " and ", lse.sizes());
  p.columns = columns;
  p.want_rows = needs[0];
  p.want_cols = apart ? needs[2] : needs[1];

  // one unit for both directions
  std::vector<float> w(rows, 0.0f), v(columns ? cols : 0, 0.0f);
  float unit = relative_weights(grad_loss, M, w.data());
  if (columns) {
    const float other = relative_weights(*grad_key_loss, M, v.data());
    const float larger = std::max(unit, other);
    for (auto& each : w) each *= unit / larger;
    for (auto& each : v) each *= other / larger;
    unit = larger;
  }
  at::Tensor sides = at::zeros({2 * rows + 2 * cols}, f32);
  float* row_weight = sides.mutable_data_ptr<float>();
  float *row_lse2 = row_weight + rows, *col_weight = row_lse2 + rows, *col_lse2 = col_weight + cols;
  const float* row_lse = lse.const_data_ptr<float>();
  const float* col_lse = columns ? key_lse.const_data_ptr<float>() : nullptr;
  const auto fill = [&](bool fold) {
    bool flushed = fill_gradient_side(w.data(), row_lse, M, fold, row_weight, row_lse2);
    if (columns) flushed |= fill_gradient_side(v.data(), col_lse, M, fold, col_weight, col_lse2);
    return flushed;
  };
  if (columns && !p.online && fill(true)) p.online = true;
  if (!columns || p.online) fill(false);
  p.row_weight = row_weight;
  p.row_lse2 = row_lse2;
  p.col_weight = columns ? col_weight : nullptr;
  p.col_lse2 = col_lse2;

  at::Tensor dx = at::zeros({needs[0] ? rows : 0, ld}, f32);
  at::Tensor dy = at::zeros({p.want_cols ? cols : 0, ld}, f32);
  p.to_rows.dx = dx.mutable_data_ptr<float>();
  p.to_cols.dx = dy.mutable_data_ptr<float>();
  if (p.want_rows || p.want_cols) all.run(cross(all.x.bf16).backward);

  std::vector<float> pull(M);  // minus (1 - p) of the positive
  const float* row_loss = loss.const_data_ptr<float>();
  const float* col_loss = columns ? key_loss.const_data_ptr<float>() : nullptr;
  for (int64_t m = 0; m < M; ++m) {
    pull[m] = w[m] * std::expm1(-row_loss[m]);
    if (columns) pull[m] += v[m] * std::expm1(-col_loss[m]);
  }
  at::Tensor dk = apart && needs[1] ? at::zeros({all.keys.rows, ld}, f32) : dy;
  add_positives(all, pull, needs[0] ? p.to_rows.dx : nullptr,
                needs[1] ? dk.mutable_data_ptr<float>() : nullptr, ld);
  const double by = inverse * unit;
  if (needs[0])
    dscale.fill_(unit * finish_gradient(all.x, p.to_rows.dx, ld, by, normalize, dqueries));
  if (needs[1])
    finish_gradient(all.positives(), dk.const_data_ptr<float>(), ld, by, normalize, dkeys);
  if (needs[2]) finish_gradient(all.y, p.to_cols.dx, ld, by, false, dnegatives);
  return out;
}

namespace {

Gradients info_nce_bwd(const at::Tensor& grad_loss, const OptionalTensor& grad_key_loss,
                       const at::Tensor& queries, const at::Tensor& keys,
                       const OptionalTensor& negatives, const OptionalTensor& targets,
                       const OptionalTensor& query_ids, const OptionalTensor& key_ids,
                       const at::Tensor& loss, const at::Tensor& lse, const at::Tensor& key_loss,
                       const at::Tensor& key_lse, const OptionalTensor& scale, double scale_factor,
                       bool within, bool normalize, std::array<bool, 3> needs) {
  if (queries.scalar_type() == at::kDouble) {
    static const auto plain = reference<Backward>("sslops::info_nce_bwd_reference");
    return plain.call(grad_loss, grad_key_loss, queries, keys, negatives, targets, query_ids,
                      key_ids, loss, lse, key_loss, key_lse, scale, scale_factor, within, normalize,
                      needs);
  }
  return info_nce_gradients(grad_loss, grad_key_loss, queries, keys, negatives, targets, query_ids,
                            key_ids, loss, lse, key_loss, key_lse, scale, scale_factor, within,
                            normalize, needs, false);
}

}  // namespace
}  // namespace sslops

TORCH_LIBRARY_IMPL(sslops, CPU, m) {
  m.impl("info_nce_fwd", &sslops::info_nce_fwd);
  m.impl("info_nce_bwd", &sslops::info_nce_bwd);
}
