// What the ops info_nce_fwd and info_nce_bwd take and return: the one list of the CPU kernels, in
// the order of sslops/_info_nce_args.py, which says what each is.
#pragma once
#include <ATen/core/ivalue.h>
#include <ATen/core/stack.h>

#include <array>
#include <optional>
#include <string>

namespace sslops {

using OptionalTensor = std::optional<at::Tensor>;

// How the gradient will be had.
enum class Plan { kRecompute, kSaveLogits, kGradInForward, kFrozenKeys };

// The arguments of a call, one after another, from the dispatcher's stack.
class StackReader {
 public:
  StackReader(const torch::jit::Stack& stack, size_t count) : next_(stack.end() - count) {}
  at::Tensor tensor() { return (next_++)->toTensor(); }
  OptionalTensor optional() { return (next_++)->toOptional<at::Tensor>(); }
  double number() { return (next_++)->toDouble(); }
  bool flag() { return (next_++)->toBool(); }
  Plan plan();
  template <size_t n>
  std::array<bool, n> flags() {
    std::array<bool, n> out;
    const c10::List<bool> list = (next_++)->toBoolList();
    for (size_t k = 0; k < n; ++k) out[k] = list.get(k);
    return out;
  }

 private:
  torch::jit::Stack::const_iterator next_;
};

struct InfoNceArgs {
  StackReader& in;  // members are read in this order
  at::Tensor queries = in.tensor(), keys = in.tensor();
  OptionalTensor negatives = in.optional();
  OptionalTensor targets = in.optional();
  OptionalTensor query_ids = in.optional(), key_ids = in.optional();
  OptionalTensor row_weights = in.optional();
  OptionalTensor scale = in.optional();
  double scale_factor = in.number();
  bool same_id_only = in.flag(), symmetric = in.flag(), normalize = in.flag(), stats = in.flag();
  Plan plan = in.plan();

  const at::Tensor& candidates() const { return negatives.has_value() ? *negatives : keys; }
};

// What the plan or the loss has none of is undefined here, and empty for the caller.
struct InfoNceSaved {
  at::Tensor loss, lse, key_loss, key_lse, similarities, dqueries, dkeys, dnegatives, dscale;
};

struct InfoNceResults {
  InfoNceSaved saved;
  at::Tensor hit, key_hit;
};

struct InfoNceGradients {
  at::Tensor queries, keys, negatives, scale;
};

}  // namespace sslops
