// NT-Xent on the CPU: symmetric tiles, so that each exponential serves its row and its column.
// Memory is O(M D); docs/math/nt_xent.md has the formulas, docs/tuning.md the sizes.
#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <tuple>
#include <vector>

#include "isa/isa.h"
#include "ops/ops.h"
#include "tiles/cross_problem.h"
#include "tiles/rows.h"
#include "tiles/schedule.h"
#include "tiles/tensors.h"

namespace sslops {
namespace {

void check(const at::Tensor& z, int64_t num_views) {
  TORCH_CHECK_VALUE(z.dim() == 2 && z.numel() > 0, "nt_xent: z must be [M, D], got ", z.sizes());
  TORCH_CHECK_VALUE(num_views >= 2 && z.size(0) % num_views == 0,
                    "nt_xent: num_views must be at least 2 and divide M, got ", num_views,
                    " and M = ", z.size(0));
}

// x, panels and the scalars of a problem; the results are pointed to by the callers.
TileProblem make_problem(const Rows& rows, double scale, int64_t num_views) {
  TileProblem p{};
  rows.point(p);
  p.samples = rows.M / num_views;
  p.scale2 = static_cast<float>(scale / kLn2);
  p.masked = std::max(kMasked / p.scale2, -std::numeric_limits<float>::max());
  p.online = !(scale * rows.largest + std::log(static_cast<double>(rows.M)) <= kLargestLogit);
  return p;
}

void run(const Rows& rows, const TileProblem& problem, bool backward) {
  const TileKernels& kernels = tiles(rows.bf16);
  const auto tile = backward ? kernels.backward : kernels.forward;
  const BlockPairs blocks = block_pairs(rows.rows, rows.D);
  at::Tensor scratch = empty({blocks.threads, kScratch}, at::kFloat);
  float* data = scratch.mutable_data_ptr<float>();
  for_each_tile(blocks, [&](Range i, Range j, int64_t thread) {
    tile(problem, i, j, data + thread * kScratch);
  });
}

}  // namespace

std::tuple<at::Tensor, at::Tensor, at::Tensor> nt_xent_fwd(const at::Tensor& z,
                                                           const OptionalTensor& scale,
                                                           double scale_factor, int64_t num_views,
                                                           bool normalize, bool stats) {
  check(z, num_views);
  const int64_t M = z.size(0);
  at::Tensor loss = empty({M}, at::kFloat), lse = empty({M}, at::kFloat);
  at::Tensor hit = empty({stats ? M : 0}, at::kBool);
  const double inverse = inverse_temperature(scale, scale_factor);
  if (!usable(inverse)) {
    loss.fill_(std::numeric_limits<double>::quiet_NaN());
    lse.fill_(std::numeric_limits<double>::quiet_NaN());
    hit.fill_(false);
    return {loss, lse, hit};
  }

  const Rows rows = make_rows(z, normalize, multiplies_bf16(z.scalar_type()));
  TileProblem p = make_problem(rows, inverse, num_views);
  p.stats = stats;
  constexpr float kLow = -std::numeric_limits<float>::infinity();
  at::Tensor sums = zeros({3, rows.rows}, at::kFloat), best;  // row_sum, positive, row_max
  p.row_sum = sums.mutable_data_ptr<float>();
  p.positive = p.row_sum + rows.rows;
  p.row_max = p.positive + rows.rows;
  std::fill(p.row_max, p.row_max + rows.rows, p.online ? kMasked : 0.0f);
  if (stats) {
    best = full({2, rows.rows}, kLow, at::kFloat);
    p.best_positive = best.mutable_data_ptr<float>();
    p.best_negative = p.best_positive + rows.rows;
  }
  run(rows, p, /*backward=*/false);

  float* loss_out = loss.mutable_data_ptr<float>();
  float* lse_out = lse.mutable_data_ptr<float>();
  bool* hit_out = hit.mutable_data_ptr<bool>();
  for (int64_t m = 0; m < M; ++m) {
    const double lse2 = std::log2(static_cast<double>(p.row_sum[m])) + p.row_max[m];
    lse_out[m] = static_cast<float>(lse2 * kLn2);
    const double row_loss = (lse2 - p.positive[m] / static_cast<double>(num_views - 1)) * kLn2;
    loss_out[m] = row_loss < 0 ? 0.0f : static_cast<float>(row_loss);  // rounding of a peaked row
    // a maximum skips NaN, the sum did not
    if (stats) hit_out[m] = row_loss == row_loss && p.best_positive[m] > p.best_negative[m];
  }
  return {loss, lse, hit};
}

namespace {

// What is left of the gradient of one row once the tiles have summed `dx` = sum over j of G_ij x_j:
// the pull of the positives (float32 tiles), temperature, normalisation. Returns <x, dL/dx>/scale.
struct RowGradient {
  const Rows& rows;
  const TileProblem& p;
  double scale;  // inverse temperature times grad_max
  bool normalize;
  std::vector<float> buffer;  // [D]

  template <class T>
  double operator()(int64_t m, T* dz) {
    const int64_t D = rows.D;
    float* v = p.dx + m * p.ld;
    const float* x = rows.row(m, buffer.data());
    for (int64_t other = m % p.samples; other < rows.M && !rows.bf16; other += p.samples) {
      if (other == m) continue;
      const float both = p.pull[m] + p.pull[other];
      const float* y = rows.row(other, nullptr);
      for (int64_t d = 0; d < D; ++d) v[d] -= both * y[d];
    }
    return through_norm(x, v, D, rows.norm[m], scale, normalize, dz);
  }
};

}  // namespace

std::tuple<at::Tensor, at::Tensor> nt_xent_bwd(const at::Tensor& grad_loss, const at::Tensor& z,
                                               const at::Tensor& lse, const OptionalTensor& scale,
                                               double scale_factor, int64_t num_views,
                                               bool normalize) {
  check(z, num_views);
  const int64_t M = z.size(0), D = z.size(1);
  TORCH_CHECK_VALUE(grad_loss.numel() == M && lse.numel() == M,
                    "nt_xent: grad_loss and lse must be", " [M] with M = ", M, ", got ",
                    grad_loss.sizes(), " and ", lse.sizes());
  at::Tensor dz = empty({M, D}, z.scalar_type());
  const double inverse = inverse_temperature(scale, scale_factor);
  if (!usable(inverse)) {
    dz.fill_(std::numeric_limits<double>::quiet_NaN());
    return {dz, full({}, std::numeric_limits<double>::quiet_NaN(), at::kFloat)};
  }

  const Rows rows = make_rows(z, normalize, multiplies_bf16(z.scalar_type()));
  TileProblem p = make_problem(rows, inverse, num_views);
  const at::Tensor w = grad_loss.to(at::kFloat).contiguous(), l = lse.to(at::kFloat).contiguous();
  const float* weight = w.const_data_ptr<float>();
  const float* log_sum = l.const_data_ptr<float>();
  float largest = 0.0f;  // weights are taken relative to it, so that a small 1/M costs no range
  for (int64_t m = 0; m < M; ++m) largest = std::max(largest, std::abs(weight[m]));
  const float grad_max = largest > 0.0f && std::isfinite(largest) ? largest : 1.0f;
  at::Tensor dx = zeros({rows.rows, rows.ld}, at::kFloat),
             vectors = zeros({4, rows.rows}, at::kFloat);
  float* tile_weight = vectors.mutable_data_ptr<float>();
  float* lse2 = tile_weight + rows.rows;
  float* relative = lse2 + rows.rows;
  float* pull = relative + rows.rows;
  for (int64_t m = 0; m < M; ++m) {
    relative[m] = weight[m] / grad_max;
    pull[m] = relative[m] / static_cast<float>(num_views - 1);
    lse2[m] = static_cast<float>(log_sum[m] / kLn2);
    tile_weight[m] = relative[m] * std::exp(-log_sum[m]);
    // a light row with a large sum: its factor would be flushed, so exponentiate each difference
    if (relative[m] != 0.0f && std::abs(tile_weight[m]) < std::numeric_limits<float>::min())
      p.online = true;
  }
  if (p.online) std::copy(relative, relative + M, tile_weight);
  p.pull = pull;
  p.weight = tile_weight;
  p.lse2 = lse2;
  p.dx = dx.mutable_data_ptr<float>();
  run(rows, p, /*backward=*/true);

  std::vector<double> inside(M);
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, z.scalar_type(), "nt_xent", [&] {
    scalar_t* out = dz.mutable_data_ptr<scalar_t>();
    const int64_t grain = row_grain(D);
    at::parallel_for(0, M, grain, [&](int64_t begin, int64_t end) {
      RowGradient gradient{rows, p, inverse * grad_max, normalize, std::vector<float>(D)};
      for (int64_t m = begin; m < end; ++m) inside[m] = gradient(m, out + m * D);
    });
  });
  double total = 0.0;  // in order: the same bits whatever the threads did
  for (double each : inside) total += each;
  return {dz, full({}, 0.5 * grad_max * total, at::kFloat)};
}

}  // namespace sslops
