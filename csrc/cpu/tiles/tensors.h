// New tensors on the CPU. The headers of ATen's own functions take longer to compile than a file
// that uses them: only tensors.cpp includes those.
#pragma once
#include <ATen/core/Tensor.h>

namespace sslops {

at::Tensor empty(at::IntArrayRef sizes, at::ScalarType dtype);
at::Tensor empty_like(const at::Tensor& like, at::ScalarType dtype);  // its strides, if it is dense
at::Tensor zeros(at::IntArrayRef sizes, at::ScalarType dtype);
at::Tensor full(at::IntArrayRef sizes, double value, at::ScalarType dtype);

}  // namespace sslops
