// What the ops info_nce_fwd and info_nce_bwd take and return: the one list of the CPU kernels, in
// the order of sslops/_info_nce_args.py, which says what each is.
#pragma once
#include <ATen/core/Tensor.h>

#include <array>
#include <optional>

namespace c10 {
struct IValue;
}

namespace sslops {

using OptionalTensor = std::optional<at::Tensor>;

// How the gradient will be had.
enum class Plan { kRecompute, kSaveLogits, kGradInForward, kFrozenKeys };

// The arguments of a call, one after another, from the dispatcher's stack. Defined where the
// dispatcher's headers are included: in info_nce.cpp.
class StackReader {
 public:
  explicit StackReader(const c10::IValue* first) : next_(first) {}
  at::Tensor tensor();
  OptionalTensor optional();
  double number();
  bool flag();
  Plan plan();
  std::array<bool, 4> flags();

 private:
  const c10::IValue* next_;
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
