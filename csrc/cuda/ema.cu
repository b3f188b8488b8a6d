// Moving average of a list of tensors, t <- m t + (1 - m) s, in one launch for every 80 pairs of
// any dtypes. The pairs travel in the kernel's arguments, so that nothing has to outlive the call
// and a CUDA graph can hold it. A block finds the pair of its chunk by bisection.
#include "ema.h"

#include <algorithm>
#include <numeric>

#include "host.h"

namespace sslops {
namespace {

constexpr int kPairs = 80;  // 4 KiB of arguments hold so many
constexpr int kEmaThreads = 512, kChunk = 1 << 15;

struct EmaPair {
  void* target;
  const void* source;
  int64_t count;  // elements, or bytes of what is only copied
  EmaKey key;
  Kind target_kind, source_kind;  // kOther: bytes
};

struct EmaBatch {
  EmaPair pairs[kPairs];
  int first_chunk[kPairs + 1];
  int count;
  bool random;
  Kind momentum_kind;
  const void* momentum;  // nullptr: momentum_value
  double momentum_value;
};
static_assert(sizeof(EmaBatch) <= 4096, "all GPUs take 4 KiB of arguments");

template <class T>
struct alignas(4 * sizeof(T)) Four {
  T value[4];
};

template <class T>
__device__ bool aligned(const T* p) {
  return reinterpret_cast<uintptr_t>(p) % sizeof(Four<T>) == 0;
}

// Elements [begin, end) by `f(target, source, number)`, four at a time where they are aligned.
template <class T, class S, class F>
__device__ void for_each(const EmaPair& pair, int64_t begin, int64_t end, F f) {
  T* const t = static_cast<T*>(pair.target);
  const S* const s = static_cast<const S*>(pair.source);
  int64_t rest = begin;
  if (aligned(t) && aligned(s)) {  // chunks begin at multiples of four
    rest = begin + (end - begin) / 4 * 4;
    for (int64_t n = begin + 4 * static_cast<int64_t>(threadIdx.x); n < rest;
         n += 4 * kEmaThreads) {
      Four<T> ours = *reinterpret_cast<const Four<T>*>(t + n);
      const Four<S> theirs = *reinterpret_cast<const Four<S>*>(s + n);
#pragma unroll
      for (int k = 0; k < 4; ++k) ours.value[k] = f(ours.value[k], theirs.value[k], n + k);
      *reinterpret_cast<Four<T>*>(t + n) = ours;
    }
  }
  for (int64_t n = rest + threadIdx.x; n < end; n += kEmaThreads) t[n] = f(t[n], s[n], n);
}

template <class T, class S>
__device__ void average_chunk(const EmaPair& pair, int64_t begin, int64_t end, double momentum,
                              bool random) {
  for_each<T, S>(pair, begin, end, [&](T t, S s, int64_t n) {
    return average<T, S>(t, s, momentum, random, pair.key, n);
  });
}

template <class T>
__device__ void average_into(const EmaPair& pair, int64_t begin, int64_t end, double momentum,
                             bool random) {
  switch (pair.source_kind) {
    case Kind::kFloat:
      return average_chunk<T, float>(pair, begin, end, momentum, random);
    case Kind::kBFloat16:
      return average_chunk<T, BFloat16>(pair, begin, end, momentum, random);
    case Kind::kHalf:
      return average_chunk<T, Half>(pair, begin, end, momentum, random);
    default:
      return average_chunk<T, double>(pair, begin, end, momentum, random);
  }
}

__global__ void __launch_bounds__(kEmaThreads) ema_kernel(const EmaBatch batch) {
  const int chunk = static_cast<int>(blockIdx.x);
  const int n = find_tensor(batch.first_chunk, batch.count, chunk);
  const EmaPair& pair = batch.pairs[n];
  const int64_t begin = int64_t{chunk - batch.first_chunk[n]} * kChunk;
  const int64_t end = begin + kChunk < pair.count ? begin + kChunk : pair.count;
  double m = batch.momentum_value;
  if (batch.momentum != nullptr)
    m = batch.momentum_kind == Kind::kDouble ? *static_cast<const double*>(batch.momentum)
                                             : *static_cast<const float*>(batch.momentum);
  if (pair.target_kind == Kind::kOther)
    return for_each<uint8_t, uint8_t>(pair, begin, end,
                                      [](uint8_t, uint8_t s, int64_t) { return s; });
  if (m == 1.0) return;  // every bit stays
  switch (pair.target_kind) {
    case Kind::kFloat:
      return average_into<float>(pair, begin, end, m, batch.random);
    case Kind::kBFloat16:
      return average_into<BFloat16>(pair, begin, end, m, batch.random);
    case Kind::kHalf:
      return average_into<Half>(pair, begin, end, m, batch.random);
    default:
      return average_into<double>(pair, begin, end, m, batch.random);
  }
}

bool same_strides(const Tensor& a, const Tensor& b) {
  for (int64_t n = 0; n < a.dim(); ++n)
    if (a.size(n) != 1 && a.stride(n) != b.stride(n)) return false;
  return true;
}

// Whether the elements fill a range of memory, in any order of the dimensions.
bool is_dense(const Tensor& tensor) {
  std::vector<int64_t> order(tensor.dim());
  std::iota(order.begin(), order.end(), 0);
  std::sort(order.begin(), order.end(),
            [&](int64_t a, int64_t b) { return tensor.stride(a) < tensor.stride(b); });
  int64_t expected = 1;
  for (const int64_t n : order) {
    if (tensor.size(n) == 1) continue;
    if (tensor.stride(n) != expected) return false;
    expected *= tensor.size(n);
  }
  return true;
}

EmaPair make_pair(const Tensor& target, const Tensor& source) {
  EmaPair pair{};
  pair.target = target.mutable_data_ptr();
  pair.source = source.const_data_ptr();
  pair.count = target.numel();
  if (kind_of(target) == Kind::kOther) pair.count *= static_cast<int64_t>(target.element_size());
  pair.target_kind = kind_of(target);
  pair.source_kind = kind_of(source);
  return pair;
}

void ema_update(std::vector<Tensor> targets, std::vector<Tensor> sources,
                const std::optional<Tensor>& momentum, double momentum_value, int64_t seed) {
  STD_TORCH_CHECK(targets.size() == sources.size(),
                  "ema_update_: needs as many sources as targets, got ", sources.size(), " and ",
                  targets.size());
  if (targets.empty() || (!momentum && momentum_value == 1.0)) return;
  const Device device(targets[0]);
  EmaBatch batch{};
  batch.random = seed >= 0;
  batch.momentum_value = momentum_value;
  if (momentum) {
    batch.momentum = momentum->const_data_ptr();
    batch.momentum_kind = kind_of(*momentum);
  }
  std::vector<Tensor> copies;  // what the batch points to besides its arguments, until the launch
  const auto flush = [&] {
    const int chunks = batch.first_chunk[batch.count];
    if (chunks > 0)
      device.launch(ema_kernel, dim3(static_cast<unsigned>(chunks)), kEmaThreads, 0, batch);
    batch.count = 0;
    copies.clear();
  };
  for (size_t n = 0; n < targets.size(); ++n) {
    Tensor target = targets[n], source = sources[n];
    if (target.numel() == 0) continue;
    const bool floating = kind_of(target) != Kind::kOther;
    STD_TORCH_CHECK(target.scalar_type() == source.scalar_type() ||
                        (floating && kind_of(source) != Kind::kOther),
                    "ema_update_: a pair must be floating or of one dtype");
    // noise belongs to a place in the tensor, whatever its strides
    const bool in_place = target.is_contiguous() && source.is_contiguous();
    const bool permuted = !batch.random && same_strides(target, source) && is_dense(target);
    Tensor copy = target;
    if (!in_place && !permuted) {
      copy = in_order(target);
      source = in_order(source);
      copies.push_back(source);
    }
    EmaPair& pair = batch.pairs[batch.count] = make_pair(copy, source);
    pair.key = ema_key(seed, static_cast<uint32_t>(n));
    const int64_t chunks = ceil_div(pair.count, kChunk);
    batch.first_chunk[batch.count + 1] = batch.first_chunk[batch.count] + static_cast<int>(chunks);
    const bool apart = copy.const_data_ptr() != target.const_data_ptr();
    if (++batch.count == kPairs || apart) flush();
    if (apart) torch::stable::copy_(target, copy);
  }
  flush();
}

}  // namespace
}  // namespace sslops

SSLOPS_LIBRARY(m) { m.impl("ema_update__cuda", TORCH_BOX(&sslops::ema_update)); }
