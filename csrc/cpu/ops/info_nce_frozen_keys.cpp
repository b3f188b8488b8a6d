// InfoNCE on the CPU against negatives that are not trained: the gradient of a query is a weighted
// mean of the keys, as in attention, so one pass over them gives the loss and the gradient. The
// keys are read as they lie; docs/math/info_nce.md has the formulas.
#include <ATen/Parallel.h>

#include <algorithm>
#include <limits>
#include <vector>

#include "isa/isa.h"
#include "ops/info_nce_problem.h"
#include "tiles/cross_problem.h"
#include "tiles/schedule.h"
#include "tiles/tensors.h"

namespace sslops {
namespace {

// kTile keys in a layout that tiles can read: as they lie if that is possible, else a padded copy.
class Stage {
 public:
  Stage(const at::Tensor& keys, bool normalize, const Rows& queries)
      : keys_(keys),
        normalize_(normalize),
        bf16_(queries.bf16),
        D_(queries.D),
        ld16_(queries.ld16) {
    direct_ = !bf16_ && !normalize && keys.scalar_type() == at::kFloat && keys.stride(1) == 1 &&
              D_ % kPanel == 0 && keys.stride(0) >= D_ && keys.stride(0) <= 2 * queries.ld;
    ld = direct_ ? keys.stride(0) : queries.ld;
    x_ = zeros({kTile, ld}, at::kFloat);
    if (!bf16_) return;
    x16_ = empty({kTile, ld16_}, at::kBFloat16);
    panels16_ = empty({kTile / 16, ld16_ / 2, 16, 2}, at::kBFloat16);
    pairs16_ = empty({kTile / 2, ld16_, 2}, at::kBFloat16);
  }

  int64_t ld;  // stride of the keys and of the means of them

  // Points the sides of the keys at `count` of them; rows past them are zero.
  void load(int64_t first, int64_t count, CrossProblem& p) {
    const int64_t rows = round_to_panel(count);
    p.M = count;
    p.first_key = first;
    p.similar.ld = p.to_cols.ld = ld;
    if (direct_ && rows == count) {
      p.similar.x = p.to_cols.x = keys_.const_data_ptr<float>() + first * ld;
      return;
    }
    float* out = x_.mutable_data_ptr<float>();
    const bool half = keys_.scalar_type() == at::kHalf;  // ATen converts them in vectors
    const at::Tensor part = half ? keys_.narrow(0, first, count).to(at::kFloat) : keys_;
    for (int64_t n = 0; n < count; ++n)
      unit_row(part, half ? n : first + n, normalize_, out + n * ld);
    std::fill(out + count * ld, out + rows * ld, 0.0f);
    p.similar.x = p.to_cols.x = out;
    if (!bf16_) return;
    const auto words = [](at::Tensor& t) { return static_cast<uint16_t*>(t.mutable_data_ptr()); };
    for (int64_t panel = 0; panel < rows / kPanel; ++panel)
      kernels(true).pack(out + panel * kPanel * ld, ld, ld16_, panel, words(x16_), words(panels16_),
                         words(pairs16_));
    p.similar.x16 = words(x16_);
    p.to_cols.pairs16 = words(pairs16_);
  }

 private:
  const at::Tensor& keys_;
  bool normalize_, bf16_, direct_;
  int64_t D_, ld16_;
  at::Tensor x_, x16_, panels16_, pairs16_;
};

// Queries in tiles, keys in strips; each pair of them is one task with sums of its own.
struct Tasks {
  int64_t tiles, strips, strip;
  Tasks(int64_t rows, int64_t keys, int64_t D) {
    const int64_t threads = threads_for(rows * keys * D);
    const int64_t tasks = threads == 1 ? 1 : 4 * threads;
    tiles = (rows + kTile - 1) / kTile;
    strips = std::clamp<int64_t>((tasks + tiles - 1) / tiles, 1, (keys + kTile - 1) / kTile);
    strip = ((keys + strips - 1) / strips + kTile - 1) / kTile * kTile;
    strips = std::max<int64_t>(1, (keys + strip - 1) / strip);
  }
};

}  // namespace

InfoNceResults info_nce_frozen_keys(const InfoNceArgs& a) {
  const at::Tensor &queries = a.queries, &keys = a.keys, &y = a.candidates();
  const bool apart = a.negatives.has_value(), normalize = a.normalize, stats = a.stats;
  TORCH_CHECK_VALUE(queries.dim() == 2 && keys.dim() == 2 && y.dim() == 2 && queries.numel() > 0 &&
                        keys.size(1) == queries.size(1) && y.size(1) == queries.size(1),
                    "info_nce: queries, keys and negatives must be [rows, D], got ",
                    queries.sizes(), ", ", keys.sizes(), " and ", y.sizes());
  TORCH_CHECK_VALUE(!a.symmetric, "info_nce: frozen_keys has one direction, got symmetric");
  const int64_t M = queries.size(0), N = y.size(0), D = queries.size(1);
  const double inverse = inverse_temperature(a.scale, a.scale_factor);
  InfoNceResults results;
  InfoNceSaved& out = results.saved;
  out.dqueries = empty({M, D}, at::kFloat);
  out.dscale = empty({M}, at::kFloat);
  if (!usable(inverse)) {
    fill_with_nan(a, results);
    return results;
  }
  out.loss = empty({M}, at::kFloat);
  out.lse = empty({M}, at::kFloat);
  results.hit = empty({stats ? M : 0}, at::kBool);

  const bool bf16 =
      multiplies_bf16(queries.scalar_type()) || (apart && multiplies_bf16(y.scalar_type()));
  const Rows x = make_rows(queries, normalize, bf16);
  const Ids ids = make_ids(a.key_ids, a.query_ids, N + kTile, x.rows);
  const std::vector<int32_t> targets = make_targets(a.targets, M, keys.size(0), x.rows);
  CrossProblem base = make_cross(x, x, inverse);
  base.N = M;
  base.same_id_only = a.same_id_only;
  base.col_id = ids.cols.empty() ? nullptr : ids.cols.data();
  if (!apart) base.targets = targets.data();

  const Tasks tasks(x.rows, N, D);
  const bool keep_norm = !apart && normalize;
  const int64_t ld = Stage(y, keep_norm, x).ld;
  at::Tensor sums = zeros({tasks.strips, 2, x.rows}, at::kFloat);
  at::Tensor best =
      full({stats ? tasks.strips : 0, x.rows}, -std::numeric_limits<float>::infinity(), at::kFloat);
  at::Tensor means = zeros({tasks.strips, x.rows, ld}, at::kFloat);
  at::Tensor positive = zeros({x.rows}, at::kFloat);
  const CrossKernels& kernels = cross(bf16);
  at::parallel_for(0, tasks.tiles * tasks.strips, 1, [&](int64_t begin, int64_t end) {
    Stage stage(y, keep_norm, x);
    at::Tensor scratch = empty({kCrossScratch}, at::kFloat);
    for (int64_t task = begin; task < end; ++task) {
      const int64_t tile = task % tasks.tiles, strip = task / tasks.tiles;
      const Range j{tile * kTile, std::min(x.rows, (tile + 1) * kTile)};
      CrossProblem p = base;
      p.col_max = sums.mutable_data_ptr<float>() + strip * 2 * x.rows;
      p.col_sum = p.col_max + x.rows;
      p.col_best = stats ? best.mutable_data_ptr<float>() + strip * x.rows : nullptr;
      p.target_similarity = positive.mutable_data_ptr<float>();
      p.to_cols.dx = means.mutable_data_ptr<float>() + strip * x.rows * ld;
      std::fill(p.col_max + j.begin, p.col_max + j.end, kMasked);
      const int64_t last = std::min(N, (strip + 1) * tasks.strip);
      for (int64_t first = strip * tasks.strip; first < last; first += kTile) {
        const int64_t count = std::min(kTile, last - first);
        stage.load(first, count, p);
        p.row_id = ids.rows.empty() ? nullptr : ids.rows.data() + first;
        kernels.attend(p, {0, round_to_panel(count)}, j, scratch.mutable_data_ptr<float>());
      }
    }
  });

  const float* tops = sums.const_data_ptr<float>();
  const float* all_means = means.const_data_ptr<float>();
  float* own_similarity = positive.mutable_data_ptr<float>();
  float* loss_out = out.loss.mutable_data_ptr<float>();
  float* lse_out = out.lse.mutable_data_ptr<float>();
  float* d_out = out.dqueries.mutable_data_ptr<float>();
  float* dscale_out = out.dscale.mutable_data_ptr<float>();
  bool* hit_out = stats ? results.hit.mutable_data_ptr<bool>() : nullptr;
  at::parallel_for(0, M, row_grain(D), [&](int64_t begin, int64_t end) {
    std::vector<float> mean(D), query(D), key(D);
    for (int64_t m = begin; m < end; ++m) {
      const float* q = x.row(m, query.data());
      unit_row(keys, targets[m], normalize, key.data());
      if (apart) own_similarity[m] = static_cast<float>(dot(q, key.data(), D));
      float top = kMasked, highest = -std::numeric_limits<float>::infinity();
      for (int64_t s = 0; s < tasks.strips; ++s) {
        top = std::max(top, tops[s * 2 * x.rows + m]);
        if (stats) highest = std::max(highest, best.const_data_ptr<float>()[s * x.rows + m]);
      }
      double sum = 0.0;
      std::fill(mean.begin(), mean.end(), 0.0f);
      for (int64_t s = 0; s < tasks.strips; ++s) {
        const float by = std::exp2(tops[s * 2 * x.rows + m] - top);
        sum += by * static_cast<double>(tops[(s * 2 + 1) * x.rows + m]);
        const float* part = all_means + (s * x.rows + m) * ld;
        for (int64_t d = 0; d < D; ++d) mean[d] += by * part[d];
      }
      const double negative = (std::log2(sum) + top) * kLn2, at = own_similarity[m] * inverse;
      const double each = softplus(negative - at);
      loss_out[m] = static_cast<float>(each);
      lse_out[m] = static_cast<float>(at + each);
      if (stats) hit_out[m] = each == each && own_similarity[m] > highest;
      // probabilities are 2^(logit - top) times this
      const float weight = static_cast<float>(std::exp(top * kLn2 - (at + each)));
      const float pull = static_cast<float>(std::expm1(-each));
      for (int64_t d = 0; d < D; ++d) mean[d] = weight * mean[d] + pull * key[d];
      dscale_out[m] = static_cast<float>(
          through_norm(q, mean.data(), D, x.norm[m], inverse, normalize, d_out + m * D));
    }
  });
  return results;
}

}  // namespace sslops
