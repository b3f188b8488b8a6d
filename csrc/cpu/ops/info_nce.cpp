// InfoNCE's ops on the CPU, queries and negatives both trained, in two passes: statistics of the
// rows (and columns), then both gradients. Memory is O((M + N) D), but of `kept`, which leaves all
// similarities from one pass to the next: for few rows of many features.
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <torch/library.h>

#include <limits>

#include "ops/info_nce_problem.h"
#include "ops/reference.h"
#include "tiles/schedule.h"

namespace sslops {
namespace {

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

using Forward = Statistics(const at::Tensor&, const at::Tensor&, const OptionalTensor&,
                           const OptionalTensor&, const OptionalTensor&, const OptionalTensor&,
                           const OptionalTensor&, double, bool, bool, bool, bool);
using Backward = Gradients(const at::Tensor&, const OptionalTensor&, const at::Tensor&,
                           const at::Tensor&, const OptionalTensor&, const OptionalTensor&,
                           const OptionalTensor&, const OptionalTensor&, const at::Tensor&,
                           const at::Tensor&, const at::Tensor&, const at::Tensor&,
                           const OptionalTensor&, double, bool, bool, std::array<bool, 3>);
using Kept = decltype(std::tuple_cat(Statistics{}, std::tuple<at::Tensor>{}));

Statistics statistics(const at::Tensor& queries, const at::Tensor& keys,
                      const OptionalTensor& negatives, const OptionalTensor& targets,
                      const OptionalTensor& query_ids, const OptionalTensor& key_ids,
                      const OptionalTensor& scale, double scale_factor, bool within, bool columns,
                      bool normalize, bool stats, float* kept) {
  if (queries.scalar_type() == at::kDouble) {
    static const auto plain = reference<Forward>("sslops::info_nce_fwd_reference");
    return plain.call(queries, keys, negatives, targets, query_ids, key_ids, scale, scale_factor,
                      within, columns, normalize, stats);
  }
  const double inverse = inverse_temperature(scale, scale_factor);
  const int64_t M = queries.size(0), N = columns ? keys.size(0) : 0;
  TORCH_CHECK_VALUE(!columns || (N == M && !targets.has_value() && !negatives.has_value()),
                    "info_nce: columns need as many keys as queries, got ", N, " and ", M);
  if (!usable(inverse)) return without_statistics(M, N, stats);
  const InfoNceProblem all(queries, keys, negatives, targets, query_ids, key_ids, inverse, within,
                           normalize);
  return info_nce_statistics(all, inverse, columns, stats, kept);
}

Statistics info_nce_fwd(const at::Tensor& queries, const at::Tensor& keys,
                        const OptionalTensor& negatives, const OptionalTensor& targets,
                        const OptionalTensor& query_ids, const OptionalTensor& key_ids,
                        const OptionalTensor& scale, double scale_factor, bool within, bool columns,
                        bool normalize, bool stats) {
  return statistics(queries, keys, negatives, targets, query_ids, key_ids, scale, scale_factor,
                    within, columns, normalize, stats, nullptr);
}

Kept info_nce_kept(const at::Tensor& queries, const at::Tensor& keys,
                   const OptionalTensor& negatives, const OptionalTensor& targets,
                   const OptionalTensor& query_ids, const OptionalTensor& key_ids,
                   const OptionalTensor& scale, double scale_factor, bool within, bool columns,
                   bool normalize, bool stats) {
  const at::Tensor& others = negatives.has_value() ? *negatives : keys;
  const bool plain = queries.scalar_type() == at::kDouble;  // which makes no use of it
  const at::Tensor kept =
      at::empty({round_to_panel(queries.size(0)), round_to_panel(others.size(0))},
                plain ? at::kDouble : at::kFloat);
  Statistics found =
      statistics(queries, keys, negatives, targets, query_ids, key_ids, scale, scale_factor, within,
                 columns, normalize, stats, plain ? nullptr : kept.mutable_data_ptr<float>());
  if (plain || !usable(inverse_temperature(scale, scale_factor))) kept.fill_(0);  // never read
  return std::tuple_cat(found, std::make_tuple(kept));
}

Gradients gradients(const at::Tensor& grad_loss, const OptionalTensor& grad_key_loss,
                    const at::Tensor& queries, const at::Tensor& keys,
                    const OptionalTensor& negatives, const OptionalTensor& targets,
                    const OptionalTensor& query_ids, const OptionalTensor& key_ids,
                    const LossAndLse& of, const float* kept, const OptionalTensor& scale,
                    double scale_factor, bool within, bool normalize, std::array<bool, 3> needs) {
  if (queries.scalar_type() == at::kDouble) {
    static const auto plain = reference<Backward>("sslops::info_nce_bwd_reference");
    const auto& [loss, lse, key_loss, key_lse] = of;
    return plain.call(grad_loss, grad_key_loss, queries, keys, negatives, targets, query_ids,
                      key_ids, loss, lse, key_loss, key_lse, scale, scale_factor, within, normalize,
                      needs);
  }
  const double inverse = inverse_temperature(scale, scale_factor);
  Gradients out = room_for_gradients(queries, keys, negatives, needs, /*wide=*/false);
  if (!usable(inverse)) return all_nan(std::move(out));
  const InfoNceProblem all(queries, keys, negatives, targets, query_ids, key_ids, inverse, within,
                           normalize);
  return info_nce_gradients(all, grad_loss, grad_key_loss, of, inverse, normalize, std::move(out),
                            kept);
}

Gradients info_nce_bwd(const at::Tensor& grad_loss, const OptionalTensor& grad_key_loss,
                       const at::Tensor& queries, const at::Tensor& keys,
                       const OptionalTensor& negatives, const OptionalTensor& targets,
                       const OptionalTensor& query_ids, const OptionalTensor& key_ids,
                       const at::Tensor& loss, const at::Tensor& lse, const at::Tensor& key_loss,
                       const at::Tensor& key_lse, const OptionalTensor& scale, double scale_factor,
                       bool within, bool normalize, std::array<bool, 3> needs) {
  return gradients(grad_loss, grad_key_loss, queries, keys, negatives, targets, query_ids, key_ids,
                   {loss, lse, key_loss, key_lse}, nullptr, scale, scale_factor, within, normalize,
                   needs);
}

Gradients info_nce_kept_bwd(const at::Tensor& grad_loss, const OptionalTensor& grad_key_loss,
                            const at::Tensor& queries, const at::Tensor& keys,
                            const OptionalTensor& negatives, const OptionalTensor& targets,
                            const OptionalTensor& query_ids, const OptionalTensor& key_ids,
                            const at::Tensor& loss, const at::Tensor& lse,
                            const at::Tensor& key_loss, const at::Tensor& key_lse,
                            const at::Tensor& kept, const OptionalTensor& scale,
                            double scale_factor, bool within, bool normalize,
                            std::array<bool, 3> needs) {
  const int64_t others = (negatives.has_value() ? *negatives : keys).size(0);
  TORCH_CHECK_VALUE(kept.dim() == 2 && kept.is_contiguous() &&
                        kept.size(0) == round_to_panel(queries.size(0)) &&
                        kept.size(1) == round_to_panel(others),
                    "info_nce: kept is not what info_nce_kept returned, got ", kept.sizes());
  const bool plain = queries.scalar_type() == at::kDouble;
  return gradients(grad_loss, grad_key_loss, queries, keys, negatives, targets, query_ids, key_ids,
                   {loss, lse, key_loss, key_lse}, plain ? nullptr : kept.const_data_ptr<float>(),
                   scale, scale_factor, within, normalize, needs);
}

}  // namespace

Statistics without_statistics(int64_t M, int64_t N, bool stats) {
  const auto nan = [](int64_t rows) { return at::full({rows}, kNan, at::kFloat); };
  const auto never = [&](int64_t rows) { return at::full({stats ? rows : 0}, false, at::kBool); };
  return {nan(M), nan(M), nan(N), nan(N), never(M), never(N)};
}

Gradients room_for_gradients(const at::Tensor& queries, const at::Tensor& keys,
                             const OptionalTensor& negatives, std::array<bool, 3> needs,
                             bool wide) {
  const auto room = [&](bool needed, const at::Tensor& like) {
    return at::empty(needed ? like.sizes() : at::IntArrayRef{0},
                     wide ? like.options().dtype(at::kFloat) : like.options());
  };
  const at::Tensor none = at::empty({0}, at::kFloat);
  return {room(needs[0], queries), room(needs[1], keys),
          negatives.has_value() ? room(needs[2], *negatives) : none,
          at::full({}, kNan, at::kFloat)};
}

Gradients all_nan(Gradients g) {
  for (auto* each : {&std::get<0>(g), &std::get<1>(g), &std::get<2>(g)}) each->fill_(kNan);
  return g;
}

}  // namespace sslops

TORCH_LIBRARY_IMPL(sslops, CPU, m) {
  m.impl("info_nce_fwd", &sslops::info_nce_fwd);
  m.impl("info_nce_bwd", &sslops::info_nce_bwd);
  m.impl("info_nce_kept", &sslops::info_nce_kept);
  m.impl("info_nce_kept_bwd", &sslops::info_nce_kept_bwd);
}
