// The gradients that info_nce_joint found, times what its losses are differentiated by; computed
// anew if that is no multiple of what was guessed.
#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>

#include "ops/info_nce_problem.h"
#include "ops/reference.h"
#include "tiles/threads.h"

namespace sslops {
namespace {

using Backward = Gradients(const at::Tensor&, const OptionalTensor&, const at::Tensor&,
                           const at::Tensor&, const OptionalTensor&, const OptionalTensor&,
                           const OptionalTensor&, const OptionalTensor&, const OptionalTensor&,
                           const at::Tensor&, const at::Tensor&, const at::Tensor&,
                           const at::Tensor&, const at::Tensor&, const at::Tensor&,
                           const at::Tensor&, const at::Tensor&, const OptionalTensor&, double,
                           bool, bool, std::array<bool, 3>);

using Again = Gradients(const at::Tensor&, const OptionalTensor&, const at::Tensor&,
                        const at::Tensor&, const OptionalTensor&, const OptionalTensor&,
                        const OptionalTensor&, const OptionalTensor&, const at::Tensor&,
                        const at::Tensor&, const at::Tensor&, const at::Tensor&,
                        const OptionalTensor&, double, bool, bool, std::array<bool, 3>);

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
    return grad[heaviest].item<float>() / weight(heaviest);
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
void fill(float c, const std::array<const at::Tensor*, 3>& from, const Gradients& to) {
  const at::Tensor* out[3] = {&std::get<0>(to), &std::get<1>(to), &std::get<2>(to)};
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

Gradients info_nce_joint_bwd(
    const at::Tensor& grad_loss, const OptionalTensor& grad_key_loss, const at::Tensor& queries,
    const at::Tensor& keys, const OptionalTensor& negatives, const OptionalTensor& targets,
    const OptionalTensor& query_ids, const OptionalTensor& key_ids, const OptionalTensor& weights,
    const at::Tensor& loss, const at::Tensor& lse, const at::Tensor& key_loss,
    const at::Tensor& key_lse, const at::Tensor& dqueries, const at::Tensor& dkeys,
    const at::Tensor& dnegatives, const at::Tensor& dscale, const OptionalTensor& scale,
    double scale_factor, bool within, bool normalize, std::array<bool, 3> needs) {
  if (queries.scalar_type() == at::kDouble) {
    static const auto plain = reference<Backward>("sslops::info_nce_joint_bwd_reference");
    return plain.call(grad_loss, grad_key_loss, queries, keys, negatives, targets, query_ids,
                      key_ids, weights, loss, lse, key_loss, key_lse, dqueries, dkeys, dnegatives,
                      dscale, scale, scale_factor, within, normalize, needs);
  }
  static const auto again = reference<Again>("sslops::info_nce_bwd");
  const int64_t M = queries.size(0);
  TORCH_CHECK_VALUE(grad_loss.numel() == M && (!weights.has_value() || weights->numel() == M) &&
                        (!grad_key_loss.has_value() || grad_key_loss->numel() == M),
                    "info_nce: gradients and weights must be [M] with M = ", M);
  const Multiple guess(weights);
  const float c = guess.at_heaviest(grad_loss);
  if (!guess.holds(c, grad_loss) || (grad_key_loss.has_value() && !guess.holds(c, *grad_key_loss)))
    return again.call(grad_loss, grad_key_loss, queries, keys, negatives, targets, query_ids,
                      key_ids, loss, lse, key_loss, key_lse, scale, scale_factor, within, normalize,
                      needs);
  Gradients out = room_for_gradients(queries, keys, negatives, needs, /*wide=*/false);
  fill(c, {&dqueries, &dkeys, &dnegatives}, out);
  std::get<3>(out) = dscale.mul(c);
  return out;
}

}  // namespace
}  // namespace sslops

TORCH_LIBRARY_IMPL(sslops, CPU, m) { m.impl("info_nce_joint_bwd", &sslops::info_nce_joint_bwd); }
