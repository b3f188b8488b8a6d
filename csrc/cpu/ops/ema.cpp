// Moving average of a list of tensors on the CPU: the elements of all tensors are one range, which
// one parallel loop divides evenly, however small or large the tensors are.
// Pairs that are not dense with the same strides go through a contiguous copy.
#include "ops/ema.h"

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>

#include <algorithm>
#include <cstring>
#include <optional>
#include <utility>
#include <vector>

#include "isa/isa.h"
#include "ops/ops.h"
#include "tiles/tensors.h"

namespace sslops {
namespace {

constexpr int64_t kGrain = 1 << 15;  // elements below which a second thread is not woken

constexpr int64_t kLine = 64;  // elements, a cache line or more of any dtype

struct Pair {
  char* target;
  const char* source;
  int64_t first, end;  // of its elements in the range of all
  int64_t size;        // bytes of an element where it is only copied
  EmaSpan average;     // nullptr: copy
  EmaKey key;
};

std::optional<EmaType> ema_type(at::ScalarType type) {
  switch (type) {
    case at::kFloat:
      return kEmaFloat;
    case at::kBFloat16:
      return kEmaBFloat16;
    case at::kHalf:
      return kEmaHalf;
    case at::kDouble:
      return kEmaDouble;
    default:
      return std::nullopt;
  }
}

EmaKey make_key(int64_t seed, uint32_t index) {
  const uint32_t low = static_cast<uint32_t>(seed), high = static_cast<uint32_t>(seed >> 32);
  const uint32_t first = ema_mix(low + index * 0x9e3779b9u);
  return {ema_mix(first ^ high), ema_mix(ema_mix(high) + first)};
}

Pair make_pair(const at::Tensor& target, const at::Tensor& source, const EmaStep& step) {
  Pair pair{};
  pair.target = static_cast<char*>(target.mutable_data_ptr());
  pair.source = static_cast<const char*>(source.const_data_ptr());
  pair.size = target.element_size();
  const auto t = ema_type(target.scalar_type()), s = ema_type(source.scalar_type());
  const bool same = target.scalar_type() == source.scalar_type();
  TORCH_CHECK_TYPE(same || (t && s), "ema_update_: a pair must be floating or of one dtype, got ",
                   target.scalar_type(), " and ", source.scalar_type());
  if (t && s && !(same && step.momentum == 0.0)) pair.average = kernels().ema.span[*t][*s];
  return pair;
}

// The element of the pair at which a thread that ends at `n` of all elements hands over: the next
// one's loads then do not lie across cache lines.
int64_t cut(const Pair& pair, int64_t n) {
  const int64_t rounded = (n - pair.first + kLine - 1) / kLine * kLine;
  return std::clamp<int64_t>(rounded, 0, pair.end - pair.first);
}

void update(const Pair& pair, int64_t begin, int64_t end, const EmaStep& step) {
  if (pair.average != nullptr)
    pair.average(pair.target, pair.source, begin, end, step, pair.key);
  else
    std::memcpy(pair.target + begin * pair.size, pair.source + begin * pair.size,
                (end - begin) * pair.size);
}

}  // namespace

void ema_update_(at::TensorList targets, at::TensorList sources,
                 const OptionalTensor& momentum_tensor, double momentum_value, int64_t seed) {
  TORCH_CHECK_VALUE(targets.size() == sources.size(),
                    "ema_update_: needs as many sources as targets, got ", sources.size(), " and ",
                    targets.size());
  const double momentum = momentum_tensor ? momentum_tensor->item().toDouble() : momentum_value;
  if (momentum == 1.0) return;
  const EmaStep step{momentum, 1.0 - momentum, seed >= 0};

  std::vector<Pair> pairs;
  std::vector<at::Tensor> dense;                              // copies, alive until the end
  std::vector<std::pair<at::Tensor, at::Tensor>> write_back;  // target, its copy
  pairs.reserve(targets.size());
  int64_t total = 0;
  for (size_t n = 0; n < targets.size(); ++n) {
    at::Tensor target = targets[n], source = sources[n];
    TORCH_CHECK_VALUE(target.sizes() == source.sizes(),
                      "ema_update_: a source must have the shape of its target, got ",
                      source.sizes(), " and ", target.sizes());
    const int64_t count = target.numel();
    if (count == 0) continue;
    // random bits belong to a place in the tensor, whatever its strides
    const bool in_order = target.is_contiguous();
    if (!in_order && (step.stochastic || !target.is_non_overlapping_and_dense())) {
      target = target.contiguous();
      write_back.emplace_back(targets[n], target);
    }
    if (source.strides() != target.strides() && !(in_order && source.is_contiguous())) {
      source = empty_like(target, source.scalar_type()).copy_(source);
      dense.push_back(source);
    }
    Pair pair = make_pair(target, source, step);
    pair.first = total;
    pair.end = total += count;
    if (step.stochastic) pair.key = make_key(seed, static_cast<uint32_t>(n));
    pairs.push_back(pair);
  }

  at::parallel_for(0, total, kGrain, [&](int64_t begin, int64_t end) {
    auto pair = std::upper_bound(pairs.begin(), pairs.end(), begin,
                                 [](int64_t n, const Pair& each) { return n < each.end; });
    for (; pair != pairs.end() && pair->first < end; ++pair)
      update(*pair, cut(*pair, begin), cut(*pair, end), step);
  });

  for (const auto& [target, copy] : write_back) target.copy_(copy);
  for (const at::Tensor& target : targets)
    if (!target.is_inference()) target.unsafeGetTensorImpl()->bump_version();
}

}  // namespace sslops
