// enqueue_ on the CPU: each row that stays in the queue is read once, and written once where it
// belongs. docs/math/queue.md has the arithmetic of the slots.
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>

#include <algorithm>
#include <cstring>
#include <optional>
#include <vector>

#include "isa/isa.h"
#include "ops/ops.h"
#include "ops/queue.h"

namespace sslops {
namespace {

constexpr int64_t kSerial = 1 << 17;  // numbers; below it waking a second thread costs more

Stored stored(at::ScalarType dtype) {
  if (dtype == at::kFloat) return Stored::kF32;
  return dtype == at::kBFloat16 ? Stored::kBf16 : Stored::kF16;
}

void check(const at::Tensor& queue, const at::Tensor& pointer, const at::Tensor& keys,
           const OptionalTensor& queue_ids, const OptionalTensor& ids) {
  TORCH_CHECK_VALUE(queue.dim() == 2 && queue.numel() > 0 && queue.is_contiguous(),
                    "enqueue_: queue must be [K, D] and contiguous, got ", queue.sizes());
  TORCH_CHECK_VALUE(pointer.numel() == 1 && pointer.scalar_type() == at::kLong,
                    "enqueue_: pointer must be one int64, got ", pointer.sizes());
  TORCH_CHECK_VALUE(keys.dim() == 2 && keys.size(1) == queue.size(1),
                    "enqueue_: keys must be [B, D], got ", keys.sizes());
  TORCH_CHECK_VALUE(ids.has_value() == queue_ids.has_value(),
                    "enqueue_: ids and queue_ids go together, got one of them");
  if (!ids.has_value()) return;
  TORCH_CHECK_VALUE(ids->dim() == 1 && ids->size(0) == keys.size(0) && queue_ids->is_contiguous() &&
                        queue_ids->numel() == queue.size(0) && ids->scalar_type() == at::kLong &&
                        queue_ids->scalar_type() == at::kLong,
                    "enqueue_: ids must be [B] and queue_ids [K], int64, got ", ids->sizes(),
                    " and ", queue_ids->sizes());
}

// Autograd then refuses a backward pass that saved the queue as it was.
void mark_written(const at::Tensor& tensor) {
  if (!tensor.is_inference()) tensor.unsafeGetTensorImpl()->bump_version();
}

// Rows [first, first + count) of keys into consecutive slots from `slot` on, round the ring.
void store_rows(const at::Tensor& queue, const at::Tensor& keys, int64_t first, int64_t count,
                int64_t slot, bool normalize) {
  if (count == 0) return;  // there may be no memory to copy from
  const int64_t K = queue.size(0), D = queue.size(1), row_step = keys.stride(0);
  const int64_t in_size = static_cast<int64_t>(keys.element_size());
  const int64_t out_size = static_cast<int64_t>(queue.element_size());
  const StoreRow store =
      kernels().store_row(stored(keys.scalar_type()), stored(queue.scalar_type()));
  const char* from = static_cast<const char*>(keys.const_data_ptr()) + first * row_step * in_size;
  char* to = static_cast<char*>(queue.mutable_data_ptr());
  const bool dense = keys.stride(1) == 1 || D == 1;
  if (!normalize && dense && row_step == D) {  // two long rows, up to the end and from the start
    const bool as_is = keys.scalar_type() == queue.scalar_type();
    const auto copy = [&](const char* source, char* target, int64_t numbers) {
      if (as_is) {
        std::memcpy(target, source, numbers * in_size);
        return;
      }
      at::parallel_for(0, numbers, kSerial, [&](int64_t begin, int64_t end) {
        store(source + begin * in_size, end - begin, false, target + begin * out_size);
      });
    };
    const int64_t before_end = std::min(count, K - slot) * D;
    copy(from, to + slot * D * out_size, before_end);
    copy(from + before_end * in_size, to, count * D - before_end);
    return;
  }
  const int64_t grain = std::max<int64_t>(1, kSerial / D);
  at::parallel_for(0, count, grain, [&](int64_t begin, int64_t end) {
    std::vector<char> buffer(dense ? 0 : D * in_size);
    for (int64_t n = begin; n < end; ++n) {
      const char* key = from + n * row_step * in_size;
      if (!dense) {
        const auto gather = [&](auto number) {
          const int64_t step = keys.stride(1) * in_size;
          for (int64_t d = 0; d < D; ++d)
            std::memcpy(buffer.data() + d * in_size, key + d * step, sizeof(number));
        };
        in_size == 4 ? gather(uint32_t{}) : gather(uint16_t{});
        key = buffer.data();
      }
      store(key, D, normalize, to + (slot + n) % K * D * out_size);
    }
  });
}

}  // namespace

void enqueue_(const at::Tensor& queue, const at::Tensor& pointer, const at::Tensor& keys,
              const OptionalTensor& queue_ids, const OptionalTensor& ids, bool normalize) {
  check(queue, pointer, keys, queue_ids, ids);
  mark_written(queue);
  mark_written(pointer);
  const int64_t K = queue.size(0), B = keys.size(0);
  const int64_t count = std::min(B, K), first = B - count;  // the newest K win
  int64_t* total = pointer.mutable_data_ptr<int64_t>();
  const int64_t slot = ((*total % K + K) % K + first) % K;
  store_rows(queue, keys, first, count, slot, normalize);
  if (ids.has_value()) {
    mark_written(*queue_ids);
    const int64_t* from = ids->const_data_ptr<int64_t>();
    int64_t* to = queue_ids->mutable_data_ptr<int64_t>();
    for (int64_t n = 0; n < count; ++n) to[(slot + n) % K] = from[(first + n) * ids->stride(0)];
  }
  *total += B;
}

}  // namespace sslops
