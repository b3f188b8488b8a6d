// InfoNCE's ops on the CPU: arguments from the stack, and a plan for them. The plans of two passes,
// statistics of the rows (and columns), then the gradients, need O((M + N) D) memory, but for
// save_logits, which leaves all similarities for the second: for few rows of many features.
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/library.h>

#include "ops/info_nce_problem.h"
#include "tiles/schedule.h"
#include "tiles/tensors.h"

namespace sslops {

at::Tensor StackReader::tensor() { return (next_++)->toTensor(); }
OptionalTensor StackReader::optional() { return (next_++)->toOptional<at::Tensor>(); }
double StackReader::number() { return (next_++)->toDouble(); }
bool StackReader::flag() { return (next_++)->toBool(); }

std::array<bool, 4> StackReader::flags() {
  const c10::List<bool> list = (next_++)->toBoolList();
  return {list.get(0), list.get(1), list.get(2), list.get(3)};
}

Plan StackReader::plan() {
  const std::string_view name = (next_++)->toStringView();
  if (name == "recompute") return Plan::kRecompute;
  if (name == "save_logits") return Plan::kSaveLogits;
  if (name == "grad_in_forward") return Plan::kGradInForward;
  TORCH_CHECK_VALUE(name == "frozen_keys",
                    "info_nce: plan must be recompute, save_logits, grad_in_forward or"
                    " frozen_keys, got ",
                    name);
  return Plan::kFrozenKeys;
}

namespace {

InfoNceResults two_passes(const InfoNceArgs& a) {
  const double inverse = inverse_temperature(a.scale, a.scale_factor);
  InfoNceResults results;
  float* similarities = nullptr;
  if (a.plan == Plan::kSaveLogits) {
    at::Tensor& room = results.saved.similarities;
    room = empty({round_to_panel(a.queries.size(0)), round_to_panel(a.candidates().size(0))},
                 at::kFloat);
    similarities = room.mutable_data_ptr<float>();
  }
  if (usable(inverse))
    info_nce_statistics(a, InfoNceProblem(a, inverse), inverse, similarities, results);
  else
    fill_with_nan(a, results);
  return results;
}

InfoNceResults forward(const InfoNceArgs& a) {
  const int64_t M = a.queries.size(0), N = a.keys.size(0);
  TORCH_CHECK_VALUE(!a.symmetric || (N == M && !a.targets.has_value() && !a.negatives.has_value()),
                    "info_nce: symmetric needs as many keys as queries, got ", N, " and ", M);
  if (a.plan == Plan::kGradInForward) return info_nce_grad_in_forward(a);
  if (a.plan == Plan::kFrozenKeys) return info_nce_frozen_keys(a);
  return two_passes(a);
}

InfoNceGradients backward(const at::Tensor& grad_loss, const OptionalTensor& grad_key_loss,
                          const InfoNceArgs& a, const InfoNceSaved& saved,
                          std::array<bool, 3> needs) {
  if (a.plan == Plan::kGradInForward)
    if (auto found = info_nce_multiples(a, saved, grad_loss, grad_key_loss, needs)) return *found;
  const float* similarities = nullptr;
  if (a.plan == Plan::kSaveLogits) {
    const at::Tensor& s = saved.similarities;
    TORCH_CHECK_VALUE(s.dim() == 2 && s.is_contiguous() &&
                          s.size(0) == round_to_panel(a.queries.size(0)) &&
                          s.size(1) == round_to_panel(a.candidates().size(0)),
                      "info_nce: similarities are not those of info_nce_fwd, got ", s.sizes());
    similarities = s.const_data_ptr<float>();
  }
  const double inverse = inverse_temperature(a.scale, a.scale_factor);
  InfoNceGradients out = room_for_gradients(a, needs, /*wide=*/false);
  if (usable(inverse))
    info_nce_gradients(a, InfoNceProblem(a, inverse), grad_loss, grad_key_loss, saved, inverse,
                       similarities, out);
  else
    fill_with_nan(out);
  return out;
}

// After frozen_keys, of queries and scale alone; keys get theirs from the reference.
InfoNceGradients after_frozen_keys(const at::Tensor& grad_loss, const InfoNceArgs& a,
                                   const InfoNceSaved& saved, std::array<bool, 4> needs) {
  InfoNceGradients out = room_for_gradients(a, {false, false, false}, /*wide=*/false);
  const at::Tensor w = grad_loss.to(at::kFloat);
  if (needs[0]) out.queries = w.unsqueeze(1).mul(saved.dqueries).to(a.queries.scalar_type());
  out.scale = needs[3] ? w.mul(saved.dscale).sum() : empty({0}, at::kFloat);
  return out;
}

void info_nce_fwd(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  const size_t count = op.schema().arguments().size();
  StackReader in(stack->data() + stack->size() - count);
  const InfoNceArgs a{in};
  if (a.queries.scalar_type() == at::kDouble) {
    static const auto plain =
        c10::Dispatcher::singleton().findSchemaOrThrow("sslops::info_nce_fwd_reference", "");
    return plain.callBoxed(stack);
  }
  const auto [s, hit, key_hit] = forward(a);
  torch::jit::drop(*stack, count);
  const auto push = [&](const at::Tensor& tensor, at::ScalarType type) {
    stack->emplace_back(tensor.defined() ? tensor : empty({0}, type));
  };
  for (const auto* each : {&s.loss, &s.lse, &s.key_loss, &s.key_lse, &s.similarities, &s.dqueries,
                           &s.dkeys, &s.dnegatives, &s.dscale})
    push(*each, at::kFloat);
  push(hit, at::kBool);
  push(key_hit, at::kBool);
}

void info_nce_bwd(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  const size_t count = op.schema().arguments().size();
  StackReader in(stack->data() + stack->size() - count);
  const at::Tensor grad_loss = in.tensor();
  const OptionalTensor grad_key_loss = in.optional();
  const InfoNceArgs a{in};
  const InfoNceSaved saved{in.tensor(), in.tensor(), in.tensor(), in.tensor(), in.tensor(),
                           in.tensor(), in.tensor(), in.tensor(), in.tensor()};
  const auto needs = in.flags();
  const bool frozen = a.plan == Plan::kFrozenKeys;
  if (a.queries.scalar_type() == at::kDouble || (frozen && needs[1])) {
    static const auto plain =
        c10::Dispatcher::singleton().findSchemaOrThrow("sslops::info_nce_bwd_reference", "");
    return plain.callBoxed(stack);
  }
  const InfoNceGradients d =
      frozen ? after_frozen_keys(grad_loss, a, saved, needs)
             : backward(grad_loss, grad_key_loss, a, saved, {needs[0], needs[1], needs[2]});
  torch::jit::drop(*stack, count);
  torch::jit::push(*stack, d.queries, d.keys, d.negatives, d.scale);
}

}  // namespace
}  // namespace sslops

TORCH_LIBRARY_IMPL(sslops, CPU, m) {
  m.impl("info_nce_fwd", torch::CppFunction::makeFromBoxedFunction<&sslops::info_nce_fwd>());
  m.impl("info_nce_bwd", torch::CppFunction::makeFromBoxedFunction<&sslops::info_nce_bwd>());
}
