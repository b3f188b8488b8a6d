#include "ops/info_nce_problem.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>

#include <algorithm>

#include "tiles/schedule.h"

namespace sslops {

InfoNceProblem::InfoNceProblem(const at::Tensor& q, const at::Tensor& k,
                               const OptionalTensor& negatives, const OptionalTensor& targets,
                               const OptionalTensor& query_ids, const OptionalTensor& key_ids,
                               double scale, bool within, bool normalize)
    : apart(negatives.has_value()) {
  TORCH_CHECK_VALUE(q.dim() == 2 && k.dim() == 2 && q.numel() > 0 && k.size(1) == q.size(1),
                    "info_nce: queries and keys must be [rows, D], got ", q.sizes(), " and ",
                    k.sizes());
  TORCH_CHECK_VALUE(!apart || (negatives->dim() == 2 && negatives->size(1) == q.size(1)),
                    "info_nce: negatives must be [K, D], got ",
                    apart ? negatives->sizes() : q.sizes());
  const bool bf16 =
      multiplies_bf16(q.scalar_type()) || (apart && multiplies_bf16(negatives->scalar_type()));
  auto both = make_rows({{q, normalize}, {apart ? *negatives : k, normalize && !apart}}, bf16);
  x = std::move(both[0]);
  y = std::move(both[1]);
  if (apart) keys = make_rows(k, normalize, false);
  p = make_cross(x, y, scale);
  ids = make_ids(query_ids, key_ids, x.rows, y.rows);
  ids.point(p);
  p.same_id_only = within;
  own = make_targets(targets, x.M, k.size(0), x.rows);
  if (!apart) p.targets = own.data();
}

void InfoNceProblem::run(const CrossProblem& problem,
                         void (*tile)(const CrossProblem&, Range, Range, float*)) const {
  const LatinSquare squares = latin_square(x.rows, y.rows, x.D);
  at::Tensor scratch = at::empty({squares.threads, kCrossScratch}, at::kFloat);
  float* data = scratch.mutable_data_ptr<float>();
  for_each_tile(squares, [&](Range i, Range j, int64_t thread, int64_t) {
    tile(problem, i, j, data + thread * kCrossScratch);
  });
}

// Losses of rows whose positive is kept out of their sum.
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
                        double scale, bool normalize, const Gradients& out) {
  const Rows& positives = all.positives();
  const int64_t D = all.x.D, ld = all.x.ld;
  const int64_t M = sums.dx ? all.x.M : 0, N = sums.dk ? positives.M : 0;
  const int64_t others = sums.dn ? all.y.M : 0;
  const auto& [dqueries, dkeys, dnegatives, dscale] = out;
  const ByTarget rows = N > 0 ? by_target(all.own, all.x.M, N) : ByTarget{};
  std::vector<double> inside(M);
  const auto query = [&](int64_t m, float* buffer) {
    float* dx = sums.dx + m * ld;
    const float* key = positives.row(all.own[m], buffer);
    const float times = sums.times ? sums.times[m] : 1.0f;
    for (int64_t d = 0; d < D; ++d) dx[d] = dx[d] * times + pull[m] * key[d];
    inside[m] = finish_row(all.x, m, dx, scale, normalize, buffer, dqueries);
  };
  const auto key = [&](int64_t k, float* buffer) {
    float* dk = sums.dk + k * ld;
    for (int64_t n = rows.first[k]; n < rows.first[k + 1]; ++n) {
      const int64_t m = rows.order[n];
      const float* x = all.x.row(m, buffer);
      for (int64_t d = 0; d < D; ++d) dk[d] += pull[m] * x[d];
    }
    finish_row(positives, k, dk, scale, normalize, buffer, dkeys);
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
                   dnegatives);
    }
  });
  double total = 0.0;  // in order: the same bits whatever the threads did
  for (double each : inside) total += each;
  return total;
}

}  // namespace sslops
