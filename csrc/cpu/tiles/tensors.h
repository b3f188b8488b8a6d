// New tensors on the CPU, without the headers of ATen's own functions, which take longer to compile
// than a file that uses them.
#pragma once
#include <ATen/EmptyTensor.h>
#include <ATen/core/Tensor.h>

namespace sslops {

inline at::Tensor empty(at::IntArrayRef sizes, at::ScalarType dtype) {
  return at::Tensor(at::detail::empty_cpu(sizes, dtype));
}
// With the strides of `like`, which must be dense.
inline at::Tensor empty_like(const at::Tensor& like, at::ScalarType dtype) {
  return at::Tensor(at::detail::empty_strided_cpu(like.sizes(), like.strides(), dtype));
}
inline at::Tensor full(at::IntArrayRef sizes, double value, at::ScalarType dtype) {
  return empty(sizes, dtype).fill_(value);
}
inline at::Tensor zeros(at::IntArrayRef sizes, at::ScalarType dtype) {
  return empty(sizes, dtype).zero_();
}

}  // namespace sslops
