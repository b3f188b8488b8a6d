// Supervised contrastive loss on the CPU. Rows are sorted by label, so that the pairs of one label
// lie in blocks along the diagonal and no other tile has to compare labels; similarities are
// symmetric, so a tile serves its rows and its columns. docs/math/sup_con.md has the formulas.

#include <algorithm>
#include <limits>
#include <numeric>
#include <tuple>
#include <vector>

#include "isa/isa.h"
#include "ops/ops.h"
#include "tiles/cross_problem.h"
#include "tiles/schedule.h"
#include "tiles/tensors.h"

namespace sslops {
namespace {

using Statistics = std::tuple<at::Tensor, at::Tensor, at::Tensor>;
using Gradients = std::tuple<at::Tensor, at::Tensor>;

// The rows in the order of their labels, against themselves.
struct Problem {
  std::vector<int64_t> order;          // row n of the problem is row order[n] of z
  std::vector<int32_t> label, itself;  // [rows]; labels count up from 0, -1 for none
  std::vector<int64_t> first, last;    // [M] the group of each row
  Rows x;
  CrossProblem p;

  Problem(const at::Tensor& z, const at::Tensor& labels, double scale, bool normalize) {
    TORCH_CHECK_VALUE(z.dim() == 2 && z.numel() > 0 && labels.numel() == z.size(0),
                      "sup_con: z must be [M, D] and labels [M], got ", z.sizes(), " and ",
                      labels.sizes());
    const int64_t M = z.size(0);
    const at::Tensor dense = labels.contiguous();
    const int64_t* list = dense.const_data_ptr<int64_t>();
    order.resize(M);
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(),
                     [&](int64_t a, int64_t b) { return list[a] < list[b]; });
    const at::Tensor index = empty({M}, at::kLong);
    std::copy(order.begin(), order.end(), index.mutable_data_ptr<int64_t>());
    x = make_rows(z.index_select(0, index), normalize, multiplies_bf16(z.scalar_type()));
    p = make_cross(x, x, scale);
    label.assign(x.rows, -1);
    itself.assign(x.rows, -1);
    std::iota(itself.begin(), itself.begin() + M, 0);
    first.resize(M);
    last.resize(M);
    int32_t count = -1;
    for (int64_t n = 0; n < M; ++n) {
      const int64_t id = list[order[n]];
      const bool same = n > 0 && id >= 0 && id == list[order[n - 1]];
      first[n] = same ? first[n - 1] : n;
      if (id >= 0) label[n] = same ? count : ++count;
    }
    for (int64_t n = M - 1; n >= 0; --n)
      last[n] = n + 1 < M && first[n + 1] == first[n] ? last[n + 1] : n + 1;
    p.targets = itself.data();
    p.symmetric = p.shared = true;
  }
  int64_t positives(int64_t n) const { return last[n] - first[n] - 1; }

  // Every unordered pair of tiles.
  void run(void (*tile)(const CrossProblem&, Range, Range, float*)) const {
    const BlockPairs blocks = block_pairs(x.rows, x.D);
    at::Tensor scratch = empty({blocks.threads, kCrossScratch}, at::kFloat);
    float* data = scratch.mutable_data_ptr<float>();
    for_each_tile(blocks, [&](Range i, Range j, int64_t thread) {
      tile(p, i, j, data + thread * kCrossScratch);
    });
  }

  // Log-sum-exp of each row, base e, to lse [M]; `within`: over the rows of its label.
  void log_sums(bool within, double* lse) {
    at::Tensor sums = zeros({2, x.rows}, at::kFloat);
    p.row_sum = p.col_sum = sums.mutable_data_ptr<float>();
    p.row_max = p.col_max = p.row_sum + x.rows;
    std::fill(p.row_max, p.row_max + x.rows, p.online ? kMasked : 0.0f);
    p.same_id_only = within;
    p.row_id = p.col_id = within ? label.data() : nullptr;
    run(cross(x.bf16).forward);
    for (int64_t n = 0; n < x.M; ++n)
      lse[n] = (std::log2(static_cast<double>(p.row_sum[n])) + p.row_max[n]) * kLn2;
  }

  // Sum over the rows of a label, each times its weight, at every row of the label: [M, D].
  std::vector<float> label_sums(const std::vector<float>& weight) const {
    const int64_t D = x.D;
    std::vector<float> sums(x.M * D);
    at::parallel_for(0, x.M, row_grain(D), [&](int64_t begin, int64_t end) {
      std::vector<float> buffer(D);
      std::vector<double> sum(D);
      for (int64_t n = begin; n < end; ++n) {
        if (n > begin && first[n] == first[n - 1]) {
          std::copy_n(&sums[(n - 1) * D], D, &sums[n * D]);
          continue;
        }
        std::fill(sum.begin(), sum.end(), 0.0);
        for (int64_t k = first[n]; k < last[n]; ++k) {
          const float* row = x.row(k, buffer.data());
          for (int64_t d = 0; d < D; ++d) sum[d] += static_cast<double>(weight[k]) * row[d];
        }
        for (int64_t d = 0; d < D; ++d) sums[n * D + d] = static_cast<float>(sum[d]);
      }
    });
    return sums;
  }
};

}  // namespace

Statistics sup_con_fwd(const at::Tensor& z, const at::Tensor& labels, const OptionalTensor& scale,
                       double scale_factor, bool inside, bool normalize) {
  const double inverse = inverse_temperature(scale, scale_factor);
  const int64_t M = z.size(0), D = z.size(1);
  Statistics out{empty({M}, at::kFloat), empty({M}, at::kFloat),
                 empty({inside ? M : 0}, at::kFloat)};
  auto& [loss, lse, positive_lse] = out;
  if (!usable(inverse)) {
    for (auto* each : {&loss, &lse, &positive_lse})
      each->fill_(std::numeric_limits<double>::quiet_NaN());
    return out;
  }
  Problem all(z, labels, inverse, normalize);
  std::vector<double> sums(M), of_positives(inside ? M : 0);
  all.log_sums(false, sums.data());
  std::vector<float> by_label;
  if (inside)
    all.log_sums(true, of_positives.data());
  else
    by_label = all.label_sums(std::vector<float>(M, 1.0f));
  std::vector<float> buffer(D);
  for (int64_t n = 0; n < M; ++n) {
    const int64_t m = all.order[n], count = all.positives(n);
    double each = 0.0;
    if (inside) {
      each = sums[n] - of_positives[n] + std::log(static_cast<double>(count));
      positive_lse.mutable_data_ptr<float>()[m] = static_cast<float>(of_positives[n]);
    } else if (count > 0) {
      const float* row = all.x.row(n, buffer.data());
      const double logit = dot(row, &by_label[n * D], D) - dot(row, row, D);
      each = sums[n] - logit * inverse / static_cast<double>(count);
    }
    loss.mutable_data_ptr<float>()[m] = count > 0 ? static_cast<float>(each) : 0.0f;
    lse.mutable_data_ptr<float>()[m] = static_cast<float>(sums[n]);
  }
  return out;
}

Gradients sup_con_bwd(const at::Tensor& grad_loss, const at::Tensor& z, const at::Tensor& labels,
                      const at::Tensor& lse, const at::Tensor& positive_lse,
                      const OptionalTensor& scale, double scale_factor, bool inside,
                      bool normalize) {
  const double inverse = inverse_temperature(scale, scale_factor);
  const int64_t M = z.size(0), D = z.size(1);
  at::Tensor dz = empty({M, D}, z.scalar_type());
  if (!usable(inverse)) {
    dz.fill_(std::numeric_limits<double>::quiet_NaN());
    return {dz, full({}, std::numeric_limits<double>::quiet_NaN(), at::kFloat)};
  }
  Problem all(z, labels, inverse, normalize);
  CrossProblem& p = all.p;
  const int64_t rows = all.x.rows, ld = all.x.ld;
  TORCH_CHECK_VALUE(
      grad_loss.numel() == M && lse.numel() == M && (!inside || positive_lse.numel() == M),
      "sup_con: grad_loss and lse must be [M] with M = ", M, ", got ", grad_loss.sizes(), " and ",
      lse.sizes());
  std::vector<float> grad(M), w(rows, 0.0f), sorted(M), positive_weight(rows, 0.0f),
      positive_lse2(rows, 0.0f);
  const double grad_max = relative_weights(grad_loss, M, grad.data());
  const float* sum = lse.const_data_ptr<float>();
  const float* of_positives = inside ? positive_lse.const_data_ptr<float>() : nullptr;
  for (int64_t n = 0; n < M; ++n) {
    const int64_t m = all.order[n], count = all.positives(n);
    sorted[n] = sum[m];
    if (count == 0) continue;  // neither loss nor gradient
    w[n] = grad[m];
    positive_weight[n] = inside ? w[n] : w[n] / static_cast<float>(count);
    if (inside) positive_lse2[n] = static_cast<float>(of_positives[m] / kLn2);
  }
  std::vector<float> weight(rows, 0.0f), lse2(rows, 0.0f);
  if (!p.online && fill_gradient_side(w.data(), sorted.data(), M, true, weight.data(), lse2.data()))
    p.online = true;
  if (p.online) fill_gradient_side(w.data(), sorted.data(), M, false, weight.data(), lse2.data());
  p.row_weight = p.col_weight = weight.data();
  p.row_lse2 = p.col_lse2 = lse2.data();
  p.label = all.label.data();
  p.positive_weight = positive_weight.data();
  p.positive_lse2 = inside ? positive_lse2.data() : nullptr;
  p.grad_rows = p.grad_cols = true;
  at::Tensor dx = zeros({rows, ld}, at::kFloat);
  p.to_rows.dx = p.to_cols.dx = dx.mutable_data_ptr<float>();
  all.run(cross(all.x.bf16).backward);

  at::Tensor by_order = empty({M, D}, z.scalar_type()), index = empty({M}, at::kLong);
  const double total =
      finish_gradient(all.x, p.to_rows.dx, ld, inverse * grad_max, normalize, by_order);
  std::copy(all.order.begin(), all.order.end(), index.mutable_data_ptr<int64_t>());
  dz.index_copy_(0, index, by_order);
  return {dz, full({}, 0.5 * grad_max * total, at::kFloat)};
}

}  // namespace sslops
