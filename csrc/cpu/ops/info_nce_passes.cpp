// The two passes of InfoNCE over all similarities: sums of rows (and columns), then the gradients.
// docs/math/info_nce.md has the formulas.

#include <algorithm>
#include <limits>

#include "isa/isa.h"
#include "ops/info_nce_problem.h"
#include "tiles/schedule.h"
#include "tiles/tensors.h"

namespace sslops {

void info_nce_statistics(const InfoNceArgs& a, const InfoNceProblem& all, double inverse,
                         float* similarities, InfoNceResults& results) {
  const bool columns = a.symmetric, stats = a.stats;
  CrossProblem p = all.p;
  const int64_t M = all.x.M, N = columns ? all.y.M : 0;
  const int64_t rows = all.x.rows, cols = columns ? all.y.rows : 0;
  p.symmetric = columns;
  p.saved = similarities;
  p.saved_ld = all.y.rows;
  at::Tensor sums = zeros({3 * rows + 2 * cols}, at::kFloat), best;
  p.row_sum = sums.mutable_data_ptr<float>();
  p.row_max = p.row_sum + rows;
  p.target_similarity = p.row_max + rows;
  p.col_sum = p.target_similarity + rows;
  p.col_max = p.col_sum + cols;
  std::fill(p.row_max, p.row_max + rows, p.online ? kMasked : 0.0f);
  std::fill(p.col_max, p.col_max + cols, p.online ? kMasked : 0.0f);
  if (stats) {
    best = full({rows + cols}, -std::numeric_limits<float>::infinity(), at::kFloat);
    p.row_best = best.mutable_data_ptr<float>();
    p.col_best = p.row_best + rows;
  }
  all.run(p, cross(all.x.bf16).forward);
  std::vector<float> query(all.x.D);
  for (int64_t m = 0; !all.keys_are_negatives && m < M; ++m)
    p.target_similarity[m] = static_cast<float>(
        dot(all.x.row(m, query.data()), all.keys.row(all.targets[m], nullptr), all.x.D));

  InfoNceSaved& s = results.saved;
  s.loss = empty({M}, at::kFloat);
  s.lse = empty({M}, at::kFloat);
  if (columns) s.key_loss = empty({N}, at::kFloat);
  if (columns) s.key_lse = empty({N}, at::kFloat);
  if (stats) results.hit = empty({M}, at::kBool);
  if (stats && columns) results.key_hit = empty({N}, at::kBool);
  finish_losses(M, p.row_max, p.row_sum, p.target_similarity, p.row_best, inverse, s.loss, s.lse,
                results.hit);
  if (columns)
    finish_losses(N, p.col_max, p.col_sum, p.target_similarity, p.col_best, inverse, s.key_loss,
                  s.key_lse, results.key_hit);
}

void info_nce_gradients(const InfoNceArgs& a, const InfoNceProblem& all,
                        const at::Tensor& grad_loss, const OptionalTensor& grad_key_loss,
                        const InfoNceSaved& of, double inverse, const float* similarities,
                        InfoNceGradients& out) {
  CrossProblem p = all.p;
  const at::Tensor &loss = of.loss, &lse = of.lse;
  const bool apart = !all.keys_are_negatives, columns = grad_key_loss.has_value();
  const bool want_queries = out.queries.numel() > 0, want_keys = out.keys.numel() > 0;
  const int64_t M = all.x.M, rows = all.x.rows, cols = all.y.rows, ld = all.x.ld;
  TORCH_CHECK_VALUE(grad_loss.numel() == M && loss.numel() == M && lse.numel() == M,
                    "info_nce: grad_loss, loss and lse must be [M] with M = ", M, ", got ",
                    grad_loss.sizes(), ", ", loss.sizes(), " and ", lse.sizes());
  p.symmetric = columns;
  p.saved = const_cast<float*>(similarities);  // which `backward` only reads
  p.saved_ld = all.y.rows;
  p.grad_rows = want_queries;
  p.grad_cols = (apart ? out.negatives : out.keys).numel() > 0;

  // relative to the larger maximum of both directions
  std::vector<float> w(rows, 0.0f), v(columns ? cols : 0, 0.0f);
  float grad_max = relative_weights(grad_loss, M, w.data());
  if (columns) {
    const float other = relative_weights(*grad_key_loss, M, v.data());
    const float larger = std::max(grad_max, other);
    for (auto& each : w) each *= grad_max / larger;
    for (auto& each : v) each *= other / larger;
    grad_max = larger;
  }
  at::Tensor sides = zeros({2 * rows + 2 * cols}, at::kFloat);
  float* row_weight = sides.mutable_data_ptr<float>();
  float *row_lse2 = row_weight + rows, *col_weight = row_lse2 + rows, *col_lse2 = col_weight + cols;
  const float* row_lse = lse.const_data_ptr<float>();
  const float* col_lse = columns ? of.key_lse.const_data_ptr<float>() : nullptr;
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

  at::Tensor dx = zeros({p.grad_rows ? rows : 0, ld}, at::kFloat);
  at::Tensor dy = zeros({p.grad_cols ? cols : 0, ld}, at::kFloat);
  p.to_rows.dx = dx.mutable_data_ptr<float>();
  p.to_cols.dx = dy.mutable_data_ptr<float>();
  if (p.grad_rows || p.grad_cols) all.run(p, cross(all.x.bf16).backward);

  std::vector<float> pull(M);  // minus (1 - p) of the positive
  const float* row_loss = loss.const_data_ptr<float>();
  const float* col_loss = columns ? of.key_loss.const_data_ptr<float>() : nullptr;
  for (int64_t m = 0; m < M; ++m) {
    pull[m] = w[m] * std::expm1(-row_loss[m]);
    if (columns) pull[m] += v[m] * std::expm1(-col_loss[m]);
  }
  at::Tensor dk = apart && want_keys ? zeros({all.keys.rows, ld}, at::kFloat) : dy;
  const Sums sums{want_queries ? p.to_rows.dx : nullptr,
                  want_keys ? dk.mutable_data_ptr<float>() : nullptr,
                  apart && p.grad_cols ? p.to_cols.dx : nullptr, nullptr};
  const double inside = finish_gradients(all, sums, pull, inverse * grad_max, a.normalize, out);
  if (want_queries) out.scale.fill_(grad_max * inside);
}

}  // namespace sslops
