// InfoNCE on the CPU, queries and negatives both trained, where it is known what multiple of each
// row's loss will be differentiated: all exponentials of a strip of queries (with columns, all
// similarities) are kept until the sums are known, so that every similarity is computed once, not
// twice. docs/math/info_nce.md.
#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "isa/isa.h"
#include "ops/info_nce_problem.h"
#include "tiles/schedule.h"
#include "tiles/tensors.h"
#include "tiles/threads.h"

namespace sslops {
namespace {

// What is kept may take this many floats, or as many as twice the rows of both sides.
constexpr int64_t kRoom = 1 << 20;

void run_strips(const InfoNceProblem& all, const RowStrips& strips, double inverse, float* over) {
  const CrossProblem& p = all.p;
  const CrossKernels& kernels = cross(all.x.bf16);
  const int64_t tile = strips.size * kTileStride, kept = strips.tiles * tile;
  at::Tensor room = empty({strips.threads, kept + kCrossScratch}, at::kFloat);
  float* data = room.mutable_data_ptr<float>();
  const auto exponentials = [&](int64_t thread, int64_t n) {
    return data + thread * (kept + kCrossScratch) + n * tile;
  };
  std::vector<float> query(all.keys_are_negatives ? 0 : all.x.D * strips.threads);
  for_each_tile(
      strips,
      [&](Range i, Range j, int64_t thread, int64_t n) {
        kernels.row_pass(p, i, j, exponentials(thread, n), exponentials(thread, strips.tiles));
      },
      [&](Range i, int64_t thread) {
        for (int64_t m = i.begin; m < std::min(i.end, all.x.M); ++m) {
          if (!all.keys_are_negatives) {
            const float* row = all.x.row(m, query.data() + thread * all.x.D);
            p.target_similarity[m] =
                static_cast<float>(dot(row, all.keys.row(all.targets[m], nullptr), all.x.D));
          }
          const double own = p.target_similarity[m] * inverse;
          over[m] = static_cast<float>(1.0 / (p.row_sum[m] + std::exp(own)));
        }
      },
      [&](Range i, Range j, int64_t thread, int64_t n) {
        kernels.column_pass(p, i, j, exponentials(thread, n), exponentials(thread, strips.tiles));
      });
}

// The c of grad = c * weights within a few roundings of each element, if there is one.
struct Multiple {
  std::optional<at::Tensor> weights;  // of 1 if null
  const float* w = nullptr;
  int64_t heaviest = 0;

  explicit Multiple(const OptionalTensor& given) : weights(given) {
    if (!weights.has_value()) return;
    weights = weights->to(at::kFloat).contiguous();
    w = weights->const_data_ptr<float>();
    for (int64_t n = 0; n < weights->numel(); ++n)
      if (!(std::abs(w[n]) <= std::abs(w[heaviest]))) heaviest = n;  // or NaN
  }
  float weight(int64_t n) const { return w ? w[n] : 1.0f; }
  float at_heaviest(const at::Tensor& grad) const {
    return grad.select(0, heaviest).item().toFloat() / weight(heaviest);
  }
  bool holds(float c, const at::Tensor& grad) const {
    constexpr float kFew = 8 * std::numeric_limits<float>::epsilon();
    const at::Tensor dense = grad.to(at::kFloat).contiguous();
    const float* g = dense.const_data_ptr<float>();
    bool same = true;  // false where anything is NaN
    for (int64_t n = 0; n < dense.numel(); ++n) {
      const float expected = c * weight(n);
      same &= std::abs(g[n] - expected) <= kFew * std::abs(expected);
    }
    return same;
  }
};

// c times the gradients that are wanted, in one parallel region.
void fill(float c, const std::array<const at::Tensor*, 3>& from, const InfoNceGradients& to) {
  const at::Tensor* out[3] = {&to.queries, &to.keys, &to.negatives};
  if (out[0]->scalar_type() == at::kHalf) {  // ATen converts these by vectors
    for (int n = 0; n < 3; ++n)
      if (out[n]->numel() > 0) out[n]->copy_(from[n]->mul(c));
    return;
  }
  const int64_t ends[2] = {out[0]->numel(), out[0]->numel() + out[1]->numel()};
  const auto part = [&](int n, int64_t begin, int64_t end) {
    if (begin >= end) return;
    const float* in = from[n]->const_data_ptr<float>();
    AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, out[n]->scalar_type(), "gradient",
                                    [&] {
                                      scalar_t* data = out[n]->mutable_data_ptr<scalar_t>();
                                      for (int64_t k = begin; k < end; ++k)
                                        data[k] = static_cast<scalar_t>(c * in[k]);
                                    });
  };
  at::parallel_for(0, ends[1] + out[2]->numel(), row_grain(1), [&](int64_t begin, int64_t end) {
    part(0, begin, std::min(end, ends[0]));
    part(1, std::max(begin, ends[0]) - ends[0], std::min(end, ends[1]) - ends[0]);
    part(2, std::max(begin, ends[1]) - ends[1], end - ends[1]);
  });
}

}  // namespace

InfoNceResults info_nce_grad_in_forward(const InfoNceArgs& a) {
  const double inverse = inverse_temperature(a.scale, a.scale_factor);
  const bool apart = a.negatives.has_value(), columns = a.symmetric, stats = a.stats;
  const int64_t M = a.queries.size(0);
  const at::Tensor w = a.row_weights.has_value() ? *a.row_weights : full({M}, 1.0, at::kFloat);
  TORCH_CHECK_VALUE(w.numel() == M, "info_nce: row_weights must be [M] with M = ", M, ", got ",
                    w.sizes());
  InfoNceGradients found = room_for_gradients(a, {true, true, true}, /*wide=*/true);
  InfoNceResults results;
  InfoNceSaved& s = results.saved;
  s.dqueries = found.queries;
  s.dkeys = found.keys;
  s.dnegatives = found.negatives;
  s.dscale = found.scale;
  if (!usable(inverse)) {
    fill_with_nan(a, results);
    return results;
  }

  InfoNceProblem all(a, inverse);
  CrossProblem& p = all.p;
  const double own = inverse * std::sqrt(all.x.largest) * std::sqrt(all.positives().largest);
  const int64_t rows = all.x.rows, cols = all.y.rows, ld = all.x.ld, D = all.x.D;
  const int64_t room = std::max(kRoom, 2 * (rows + cols) * ld);
  const auto strips = row_strips(rows, cols, D, room);
  if (columns || p.online || !(own <= kLargestLogit) || !strips) {
    at::Tensor kept = empty({rows * cols <= room ? rows * cols : 0}, at::kFloat);
    float* similarities = kept.numel() > 0 ? kept.mutable_data_ptr<float>() : nullptr;
    info_nce_statistics(a, all, inverse, similarities, results);
    info_nce_gradients(a, all, w, columns ? OptionalTensor(w) : OptionalTensor(), s, inverse,
                       similarities, found);
    return results;
  }

  at::Tensor vectors = zeros({5 * rows}, at::kFloat), best;
  p.row_sum = vectors.mutable_data_ptr<float>();
  p.target_similarity = p.row_sum + rows;
  float *over = p.target_similarity + rows, *weight = over + rows, *maximum = weight + rows;
  if (stats) {
    best = full({rows}, -std::numeric_limits<float>::infinity(), at::kFloat);
    p.row_best = best.mutable_data_ptr<float>();
  }
  const float grad_max = relative_weights(w, M, weight);
  p.inverse_sum = over;
  p.row_weight = weight;
  at::Tensor dx = zeros({rows, ld}, at::kFloat), dy = zeros({cols, ld}, at::kFloat);
  p.to_rows.dx = dx.mutable_data_ptr<float>();
  p.to_cols.dx = dy.mutable_data_ptr<float>();
  run_strips(all, *strips, inverse, over);

  s.loss = empty({M}, at::kFloat);
  s.lse = empty({M}, at::kFloat);
  results.hit = empty({stats ? M : 0}, at::kBool);
  finish_losses(M, maximum, p.row_sum, p.target_similarity, p.row_best, inverse, s.loss, s.lse,
                results.hit);
  const float* each = s.loss.const_data_ptr<float>();
  std::vector<float> pull(M);  // minus (1 - p) of the positive
  for (int64_t m = 0; m < M; ++m) {
    pull[m] = weight[m] * std::expm1(-each[m]);
    over[m] *= weight[m];
  }
  at::Tensor dk = apart ? zeros({all.keys.rows, ld}, at::kFloat) : dy;
  const Sums sums{p.to_rows.dx, dk.mutable_data_ptr<float>(), apart ? p.to_cols.dx : nullptr, over};
  const double inside = finish_gradients(all, sums, pull, inverse * grad_max, a.normalize, found);
  found.scale.fill_(grad_max * inside);
  return results;
}

std::optional<InfoNceGradients> info_nce_multiples(const InfoNceArgs& a, const InfoNceSaved& saved,
                                                   const at::Tensor& grad_loss,
                                                   const OptionalTensor& grad_key_loss,
                                                   std::array<bool, 3> needs) {
  const int64_t M = a.queries.size(0);
  TORCH_CHECK_VALUE(grad_loss.numel() == M && (!a.row_weights || a.row_weights->numel() == M) &&
                        (!grad_key_loss || grad_key_loss->numel() == M),
                    "info_nce: gradients and row_weights must be [M] with M = ", M);
  const Multiple guess(a.row_weights);
  const float c = guess.at_heaviest(grad_loss);
  if (!guess.holds(c, grad_loss) || (grad_key_loss && !guess.holds(c, *grad_key_loss)))
    return std::nullopt;
  InfoNceGradients out = room_for_gradients(a, needs, /*wide=*/false);
  TORCH_CHECK_VALUE(
      (!needs[0] || saved.dqueries.sizes() == a.queries.sizes()) &&
          (!needs[1] || saved.dkeys.sizes() == a.keys.sizes()) &&
          (!needs[2] || !a.negatives || saved.dnegatives.sizes() == a.negatives->sizes()),
      "info_nce: the gradients are not those of info_nce_fwd, got ", saved.dqueries.sizes(), ", ",
      saved.dkeys.sizes(), " and ", saved.dnegatives.sizes());
  fill(c, {&saved.dqueries, &saved.dkeys, &saved.dnegatives}, out);
  out.scale = saved.dscale.mul(c);
  return out;
}

}  // namespace sslops
