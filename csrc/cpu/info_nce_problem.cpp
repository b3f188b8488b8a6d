#include "info_nce_problem.h"

#include <ATen/ops/empty.h>

#include <algorithm>

#include "squares.h"

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
  x = make_rows(q, normalize, bf16);
  y = apart ? make_rows(*negatives, false, bf16) : make_rows(k, normalize, bf16);
  if (apart) keys = make_rows(k, normalize, false);
  p = make_cross(x, y, scale);
  ids = make_ids(query_ids, key_ids, x.rows, y.rows);
  ids.point(p);
  p.within = within;
  own = make_own(targets, x.M, k.size(0), x.rows);
  if (!apart) p.own = own.data();
}

void InfoNceProblem::run(void (*tile)(const CrossProblem&, Range, Range, float*)) const {
  const Squares squares = make_squares(x.rows, y.rows, x.D);
  at::Tensor scratch = at::empty({squares.threads, kCrossScratch}, at::kFloat);
  float* data = scratch.mutable_data_ptr<float>();
  for_each_square_tile(squares, [&](Range i, Range j, int64_t thread, int64_t) {
    tile(p, i, j, data + thread * kCrossScratch);
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

// Adds what the positives pull: c_m k_t(m) to dx and, where keys are trained, c_m x_m to dk.
void add_positives(const InfoNceProblem& all, const std::vector<float>& pull, float* dx, float* dk,
                   int64_t ld) {
  const Rows& keys = all.positives();
  const int64_t D = all.x.D, grain = std::max<int64_t>(1, 32768 / D);
  if (dx)
    at::parallel_for(0, all.x.M, grain, [&](int64_t begin, int64_t end) {
      std::vector<float> buffer(D);
      for (int64_t m = begin; m < end; ++m) {
        const float* key = keys.row(all.own[m], buffer.data());
        for (int64_t d = 0; d < D; ++d) dx[m * ld + d] += pull[m] * key[d];
      }
    });
  if (!dk) return;
  const ByTarget rows = by_target(all.own, all.x.M, keys.M);
  at::parallel_for(0, keys.M, grain, [&](int64_t begin, int64_t end) {
    std::vector<float> buffer(D);
    for (int64_t k = begin; k < end; ++k)
      for (int64_t n = rows.first[k]; n < rows.first[k + 1]; ++n) {
        const int64_t m = rows.order[n];
        const float* query = all.x.row(m, buffer.data());
        for (int64_t d = 0; d < D; ++d) dk[k * ld + d] += pull[m] * query[d];
      }
  });
}

}  // namespace sslops
