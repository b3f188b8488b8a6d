// Ring buffer of keys: queue[(p + b) mod K] <- k_b / max(||k_b||, 1e-12), then p <- p + B.
// Of more than K keys only the newest K are written, so that no two go to one slot. Every block
// reads the old p; a second kernel advances it when all are done.
#include "host.h"
#include "index.h"

namespace sslops {
namespace {

struct Enqueue {
  void* queue;       // [K, D]
  const void* keys;  // [B, D]
  const int64_t* total;
  int64_t* queue_ids;  // [K] or nullptr
  const int64_t* ids;  // [B]
  int64_t K, B, D, row_stride, column_stride;
  Kind queue_kind, keys_kind;
  bool normalize;
};

constexpr int kRowsPerBlock = 4;  // one warp each

__global__ void __launch_bounds__(32 * kRowsPerBlock) enqueue_kernel(Enqueue p) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int64_t b = first_kept(p.B, p.K) + int64_t{blockIdx.x} * kRowsPerBlock + threadIdx.x / 32;
  if (b >= p.B) return;  // the whole warp
  const int64_t from = b * p.row_stride, slot = ring_slot(*p.total, b, p.K);
  float divisor = 1.0f;
  if (p.normalize) {
    float sum = 0.0f;
    for (int64_t d = lane; d < p.D; d += 32) {
      const float k = load(p.keys, from + d * p.column_stride, p.keys_kind);
      sum += k * k;
    }
    const float norm = sqrtf(warp_sum(sum));
    divisor = norm < kNormEps ? kNormEps : norm;  // NaN stays
  }
  for (int64_t d = lane; d < p.D; d += 32) {
    const float k = load(p.keys, from + d * p.column_stride, p.keys_kind);
    store(p.queue, slot * p.D + d, p.queue_kind, p.normalize ? k / divisor : k);
  }
  if (lane == 0 && p.queue_ids != nullptr) p.queue_ids[slot] = p.ids[b];
}

__global__ void advance_kernel(int64_t* total, int64_t by) { *total += by; }

void enqueue(const Tensor& queue, const Tensor& pointer_to_total, const Tensor& keys,
             const std::optional<Tensor>& queue_ids, const std::optional<Tensor>& given_ids,
             bool normalize) {
  STD_TORCH_CHECK(kind_of(queue) <= Kind::kHalf && kind_of(keys) <= Kind::kHalf,
                  "enqueue_: needs floating tensors of at most 32 bits");
  const Device device(queue);
  const std::optional<Tensor> ids = in_order(given_ids);
  Enqueue p{};
  p.B = keys.size(0);
  if (p.B == 0) return;
  p.K = queue.size(0);
  p.D = queue.size(1);
  p.queue = queue.mutable_data_ptr();
  p.keys = keys.const_data_ptr();
  p.total = pointer<int64_t>(pointer_to_total);
  if (queue_ids && ids) {
    p.queue_ids = mutable_pointer<int64_t>(*queue_ids);
    p.ids = pointer<int64_t>(*ids);
  }
  p.row_stride = keys.stride(0);
  p.column_stride = keys.stride(1);
  p.queue_kind = kind_of(queue);
  p.keys_kind = kind_of(keys);
  p.normalize = normalize;
  const int64_t blocks = ceil_div(p.B - first_kept(p.B, p.K), kRowsPerBlock);
  device.launch(enqueue_kernel, dim3(static_cast<unsigned>(blocks)), 32 * kRowsPerBlock, 0, p);
  device.launch(advance_kernel, dim3(1), 1, 0, mutable_pointer<int64_t>(pointer_to_total), p.B);
}

}  // namespace
}  // namespace sslops

SSLOPS_LIBRARY(m) { m.impl("enqueue__cuda", TORCH_BOX(&sslops::enqueue)); }
