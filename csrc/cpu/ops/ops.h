// The ops of the CPU but InfoNCE's, as register.cpp registers them; sslops/ops/ has the schemas.
#pragma once
#include <ATen/core/Tensor.h>

#include <optional>
#include <tuple>

namespace sslops {

using OptionalTensor = std::optional<at::Tensor>;

// loss, lse, hit
std::tuple<at::Tensor, at::Tensor, at::Tensor> nt_xent_fwd(const at::Tensor& z,
                                                           const OptionalTensor& scale,
                                                           double scale_factor, int64_t num_views,
                                                           bool normalize, bool stats);
// dz, dscale
std::tuple<at::Tensor, at::Tensor> nt_xent_bwd(const at::Tensor& grad_loss, const at::Tensor& z,
                                               const at::Tensor& lse, const OptionalTensor& scale,
                                               double scale_factor, int64_t num_views,
                                               bool normalize);

// loss, lse, positive_lse
std::tuple<at::Tensor, at::Tensor, at::Tensor> sup_con_fwd(const at::Tensor& z,
                                                           const at::Tensor& labels,
                                                           const OptionalTensor& scale,
                                                           double scale_factor, bool inside,
                                                           bool normalize);
// dz, dscale
std::tuple<at::Tensor, at::Tensor> sup_con_bwd(const at::Tensor& grad_loss, const at::Tensor& z,
                                               const at::Tensor& labels, const at::Tensor& lse,
                                               const at::Tensor& positive_lse,
                                               const OptionalTensor& scale, double scale_factor,
                                               bool inside, bool normalize);

// loss, dqueries, dkeys, dscale, dbias
std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor> sigmoid_loss_fwd(
    const at::Tensor& queries, const at::Tensor& keys, const OptionalTensor& query_ids,
    const OptionalTensor& key_ids, const OptionalTensor& scale, double scale_factor,
    const OptionalTensor& bias, double bias_value, bool normalize, bool grads);

void ema_update_(at::TensorList targets, at::TensorList sources,
                 const OptionalTensor& momentum_tensor, double momentum_value, int64_t seed);

void enqueue_(const at::Tensor& queue, const at::Tensor& pointer, const at::Tensor& keys,
              const OptionalTensor& queue_ids, const OptionalTensor& ids, bool normalize);

}  // namespace sslops
