#include "rows.h"

namespace sslops {

// x_i = u_i / max(||u_i||, 1e-12) in the dtype of the tiles, zeros up to a multiple of 16 bytes.
// One warp a row.
__global__ void __launch_bounds__(128) unit_rows_kernel(UnitRows p) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int64_t row = int64_t{blockIdx.x} * 4 + threadIdx.x / 32;
  if (row >= p.rows) return;  // the whole warp
  float norm = 1.0f;
  if (p.normalize) {
    float sum = 0.0f;
    for (int64_t d = lane; d < p.D; d += 32) {
      const float u = load(p.from, row * p.row_stride + d * p.column_stride, p.from_kind);
      sum += u * u;
    }
    norm = sqrtf(warp_sum(sum));
    if (lane == 0) p.norms[row] = norm;
  }
  const float divisor = norm < kNormEps ? kNormEps : norm;
  for (int64_t d = lane; d < p.ld; d += 32) {
    float u = 0.0f;
    if (d < p.D) u = load(p.from, row * p.row_stride + d * p.column_stride, p.from_kind);
    store(p.to, row * p.ld + d, p.to_kind, p.normalize ? u / divisor : u);
  }
}

Rows make_rows(const Device& device, const Tensor& tensor, ScalarType type, bool normalize) {
  Rows out;
  out.rows = tensor.size(0);
  out.D = tensor.size(1);
  const int64_t element = type == ScalarType::Float ? 4 : 2;
  out.ld = round_up(out.D, 16 / element);
  out.width = out.ld;
  const bool aligned = reinterpret_cast<uintptr_t>(tensor.const_data_ptr()) % 16 == 0;
  if (!normalize && tensor.scalar_type() == type && out.ld == out.D && aligned &&
      (out.D == 1 || tensor.stride(1) == 1) && tensor.stride(0) * element % 16 == 0 &&
      tensor.stride(0) >= 0) {
    out.values = tensor;  // a queue is read as it lies
    out.ld = tensor.stride(0);
    return out;
  }
  out.values = new_tensor(tensor, {out.rows, out.ld}, type);
  if (normalize) out.norms = new_tensor(tensor, {out.rows}, ScalarType::Float);
  UnitRows p{};
  p.from = tensor.const_data_ptr();
  p.from_kind = kind_of(tensor);
  p.row_stride = tensor.stride(0);
  p.column_stride = tensor.stride(1);
  p.to = out.values->mutable_data_ptr();
  p.to_kind = kind_of(*out.values);
  p.rows = out.rows;
  p.D = out.D;
  p.ld = out.ld;
  p.norms = normalize ? mutable_pointer<float>(*out.norms) : nullptr;
  p.normalize = normalize;
  device.launch(unit_rows_kernel, dim3(static_cast<unsigned>(ceil_div(p.rows, 4))), 128, 0, p);
  return out;
}

}  // namespace sslops
