#include "tiles/cross_problem.h"

#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <limits>
#include <unordered_map>

#include "tiles/threads.h"

namespace sslops {

double inverse_temperature(const OptionalTensor& scale, double factor) {
  return scale.has_value() ? scale->item().toDouble() * factor : factor;
}

CrossProblem make_cross(const Rows& x, const Rows& y, double scale) {
  CrossProblem p{};
  x.point(p.similar);
  y.point(p.to_rows);
  x.point(p.to_cols);
  p.similar.panels = p.to_rows.panels;
  p.similar.panels16 = p.to_rows.panels16;
  p.M = x.M;
  p.N = y.M;
  p.scale = static_cast<float>(scale);
  p.scale2 = static_cast<float>(scale / kLn2);
  p.masked = std::max(kMasked / p.scale2, -std::numeric_limits<float>::max());
  const double largest = std::sqrt(x.largest) * std::sqrt(y.largest);
  const double terms = static_cast<double>(std::max(x.M, y.M));
  p.online = !(scale * largest + std::log(terms) <= kLargestLogit);
  return p;
}

void Ids::point(CrossProblem& p) const {
  p.row_id = rows.empty() ? nullptr : rows.data();
  p.col_id = cols.empty() ? nullptr : cols.data();
}

Ids make_ids(const OptionalTensor& row_ids, const OptionalTensor& col_ids, int64_t rows,
             int64_t cols) {
  Ids ids;
  if (!row_ids.has_value() || !col_ids.has_value()) return ids;
  const at::Tensor a = row_ids->contiguous(), b = col_ids->contiguous();
  const int64_t* list[2] = {a.const_data_ptr<int64_t>(), b.const_data_ptr<int64_t>()};
  const int64_t size[2] = {a.numel(), b.numel()};
  ids.rows.assign(rows, -1);
  ids.cols.assign(cols, -1);
  std::vector<int32_t>* out[2] = {&ids.rows, &ids.cols};
  int64_t largest = 0;
  for (int n = 0; n < 2; ++n)
    for (int64_t k = 0; k < size[n]; ++k) largest = std::max(largest, list[n][k]);
  std::unordered_map<int64_t, int32_t> small;  // used if an id does not fit 32 bits
  const bool fits = largest <= std::numeric_limits<int32_t>::max();
  for (int n = 0; n < 2; ++n)
    for (int64_t k = 0; k < size[n]; ++k) {
      const int64_t id = list[n][k];
      if (id < 0) continue;
      (*out[n])[k] = fits ? static_cast<int32_t>(id)
                          : small.try_emplace(id, static_cast<int32_t>(small.size())).first->second;
    }
  return ids;
}

std::vector<int32_t> make_targets(const OptionalTensor& targets, int64_t M, int64_t N,
                                  int64_t rows) {
  std::vector<int32_t> column(rows, -1);
  if (!targets.has_value()) {
    TORCH_CHECK_VALUE(M <= N, "info_nce: without targets every query needs its key, got ", M,
                      " and ", N);
    for (int64_t m = 0; m < M; ++m) column[m] = static_cast<int32_t>(m);
    return column;
  }
  TORCH_CHECK_VALUE(targets->numel() == M, "info_nce: targets must be [M] with M = ", M, ", got ",
                    targets->sizes());
  const at::Tensor t = targets->contiguous();
  const int64_t* list = t.const_data_ptr<int64_t>();
  for (int64_t m = 0; m < M; ++m) {
    TORCH_CHECK_VALUE(list[m] >= 0 && list[m] < N, "info_nce: targets must be in [0, ", N,
                      "), got ", list[m]);
    column[m] = static_cast<int32_t>(list[m]);
  }
  return column;
}

ByTarget by_target(const std::vector<int32_t>& targets, int64_t M, int64_t N) {
  ByTarget t{std::vector<int64_t>(M), std::vector<int64_t>(N + 1, 0)};
  for (int64_t m = 0; m < M; ++m) ++t.first[targets[m] + 1];
  for (int64_t n = 0; n < N; ++n) t.first[n + 1] += t.first[n];
  std::vector<int64_t> next(t.first.begin(), t.first.end() - 1);
  for (int64_t m = 0; m < M; ++m) t.order[next[targets[m]]++] = m;
  return t;
}

float relative_weights(const at::Tensor& grad, int64_t M, float* out) {
  const at::Tensor w = grad.to(at::kFloat).contiguous();
  const float* weight = w.const_data_ptr<float>();
  float largest = 0.0f;
  for (int64_t m = 0; m < M; ++m) largest = std::max(largest, std::abs(weight[m]));
  const float grad_max = largest > 0.0f && std::isfinite(largest) ? largest : 1.0f;
  for (int64_t m = 0; m < M; ++m) out[m] = weight[m] / grad_max;
  return grad_max;
}

bool fill_gradient_side(const float* weight, const float* lse, int64_t M, bool fold, float* out,
                        float* lse2) {
  bool flushed = false;
  for (int64_t m = 0; m < M; ++m) {
    lse2[m] = static_cast<float>(lse[m] / kLn2);
    out[m] = fold ? weight[m] * std::exp(-lse[m]) : weight[m];
    // a light row with a large sum: its factor would be flushed
    flushed |= weight[m] != 0.0f && std::abs(out[m]) < std::numeric_limits<float>::min();
  }
  return fold && flushed;
}

double finish_row(const Rows& x, int64_t m, const float* dx, double scale, bool normalize,
                  float* buffer, const at::Tensor& out) {
  double inside = 0.0;
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, out.scalar_type(), "gradient", [&] {
    inside = through_norm(x.row(m, buffer), dx, x.D, x.norm[m], scale, normalize,
                          out.mutable_data_ptr<scalar_t>() + m * x.D);
  });
  return inside;
}

double finish_gradient(const Rows& x, const float* dx, int64_t ld, double scale, bool normalize,
                       const at::Tensor& out) {
  std::vector<double> inside(x.M);
  at::parallel_for(0, x.M, row_grain(x.D), [&](int64_t begin, int64_t end) {
    std::vector<float> buffer(x.D);
    for (int64_t m = begin; m < end; ++m)
      inside[m] = finish_row(x, m, dx + m * ld, scale, normalize, buffer.data(), out);
  });
  double total = 0.0;  // in order: the same bits whatever the threads did
  for (double each : inside) total += each;
  return total;
}

}  // namespace sslops
