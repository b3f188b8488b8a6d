#include "ops/info_nce_problem.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <limits>

#include "tiles/schedule.h"
#include "tiles/tensors.h"

namespace sslops {

InfoNceProblem::InfoNceProblem(const InfoNceArgs& a, double scale)
    : keys_are_negatives(!a.negatives.has_value()) {
  const at::Tensor &q = a.queries, &k = a.keys, &others = a.candidates();
  TORCH_CHECK_VALUE(q.dim() == 2 && k.dim() == 2 && q.numel() > 0 && k.size(1) == q.size(1),
                    "info_nce: queries and keys must be [rows, D], got ", q.sizes(), " and ",
                    k.sizes());
  TORCH_CHECK_VALUE(others.dim() == 2 && others.size(1) == q.size(1),
                    "info_nce: negatives must be [K, D], got ", others.sizes());
  const bool bf16 = multiplies_bf16(q.scalar_type()) ||
                    (!keys_are_negatives && multiplies_bf16(others.scalar_type()));
  auto both = make_rows({{q, a.normalize}, {others, a.normalize && keys_are_negatives}}, bf16);
  x = std::move(both[0]);
  y = std::move(both[1]);
  if (!keys_are_negatives) keys = make_rows(k, a.normalize, false);
  p = make_cross(x, y, scale);
  ids = make_ids(a.query_ids, a.key_ids, x.rows, y.rows);
  ids.point(p);
  p.same_id_only = a.same_id_only;
  targets = make_targets(a.targets, x.M, k.size(0), x.rows);
  if (keys_are_negatives) p.targets = targets.data();
}

void InfoNceProblem::run(const CrossProblem& problem,
                         void (*tile)(const CrossProblem&, Range, Range, float*)) const {
  const LatinSquare squares = latin_square(x.rows, y.rows, x.D);
  at::Tensor scratch = empty({squares.threads, kCrossScratch}, at::kFloat);
  float* data = scratch.mutable_data_ptr<float>();
  for_each_tile(squares, [&](Range i, Range j, int64_t thread, int64_t) {
    tile(problem, i, j, data + thread * kCrossScratch);
  });
}

void finish_losses(int64_t M, const float* maximum, const float* sum, const float* positive,
                   const float* best, double scale, at::Tensor& loss, at::Tensor& lse,
                   at::Tensor& hit) {
  float* loss_out = loss.mutable_data_ptr<float>();
  float* lse_out = lse.mutable_data_ptr<float>();
  bool* hit_out = best ? hit.mutable_data_ptr<bool>() : nullptr;
  for (int64_t m = 0; m < M; ++m) {
    const double negatives = (std::log2(static_cast<double>(sum[m])) + maximum[m]) * kLn2;
    const double own = positive[m] * scale;
    const double each = softplus(negatives - own);
    loss_out[m] = static_cast<float>(each);
    lse_out[m] = static_cast<float>(own + each);
    // a maximum skips NaN, the sum did not
    if (best) hit_out[m] = each == each && positive[m] > best[m];
  }
}

double finish_gradients(const InfoNceProblem& all, const Sums& sums, const std::vector<float>& pull,
                        double scale, bool normalize, const InfoNceGradients& out) {
  const Rows& positives = all.positives();
  const int64_t D = all.x.D, ld = all.x.ld;
  const int64_t M = sums.dx ? all.x.M : 0, N = sums.dk ? positives.M : 0;
  const int64_t others = sums.dn ? all.y.M : 0;
  const ByTarget rows = N > 0 ? by_target(all.targets, all.x.M, N) : ByTarget{};
  std::vector<double> inside(M);
  const auto query = [&](int64_t m, float* buffer) {
    float* dx = sums.dx + m * ld;
    const float* key = positives.row(all.targets[m], buffer);
    const float times = sums.times ? sums.times[m] : 1.0f;
    for (int64_t d = 0; d < D; ++d) dx[d] = dx[d] * times + pull[m] * key[d];
    inside[m] = finish_row(all.x, m, dx, scale, normalize, buffer, out.queries);
  };
  const auto key = [&](int64_t k, float* buffer) {
    float* dk = sums.dk + k * ld;
    for (int64_t n = rows.first[k]; n < rows.first[k + 1]; ++n) {
      const int64_t m = rows.order[n];
      const float* x = all.x.row(m, buffer);
      for (int64_t d = 0; d < D; ++d) dk[d] += pull[m] * x[d];
    }
    finish_row(positives, k, dk, scale, normalize, buffer, out.keys);
  };
  at::parallel_for(0, M + N + others, row_grain(D), [&](int64_t begin, int64_t end) {
    std::vector<float> buffer(D);
    for (int64_t n = begin; n < end; ++n) {
      if (n < M)
        query(n, buffer.data());
      else if (n < M + N)
        key(n - M, buffer.data());
      else
        finish_row(all.y, n - M - N, sums.dn + (n - M - N) * ld, scale, false, buffer.data(),
                   out.negatives);
    }
  });
  double total = 0.0;  // in order: the same bits whatever the threads did
  for (double each : inside) total += each;
  return total;
}

void fill_with_nan(const InfoNceArgs& a, InfoNceResults& results) {
  constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
  const int64_t M = a.queries.size(0), N = a.symmetric ? a.keys.size(0) : 0;
  InfoNceSaved& s = results.saved;
  s.loss = full({M}, kNan, at::kFloat);
  s.lse = full({M}, kNan, at::kFloat);
  s.key_loss = full({N}, kNan, at::kFloat);
  s.key_lse = full({N}, kNan, at::kFloat);
  if (s.similarities.defined()) s.similarities.fill_(0);  // never read
  for (auto* each : {&s.dqueries, &s.dkeys, &s.dnegatives, &s.dscale})
    if (each->defined()) each->fill_(kNan);
  results.hit = full({a.stats ? M : 0}, false, at::kBool);
  results.key_hit = full({a.stats ? N : 0}, false, at::kBool);
}

InfoNceGradients room_for_gradients(const InfoNceArgs& a, std::array<bool, 3> needs, bool wide) {
  const auto room = [&](bool needed, const at::Tensor& like) {
    return empty(needed ? like.sizes() : at::IntArrayRef{0},
                 wide ? at::kFloat : like.scalar_type());
  };
  return {room(needs[0], a.queries), room(needs[1], a.keys),
          a.negatives.has_value() ? room(needs[2], *a.negatives) : empty({0}, at::kFloat),
          full({}, std::numeric_limits<double>::quiet_NaN(), at::kFloat)};
}

void fill_with_nan(InfoNceGradients& g) {
  for (auto* each : {&g.queries, &g.keys, &g.negatives})
    each->fill_(std::numeric_limits<double>::quiet_NaN());
}

}  // namespace sslops
