#include "tiles/tensors.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/full.h>
#include <ATen/ops/zeros.h>

namespace sslops {

at::Tensor empty(at::IntArrayRef sizes, at::ScalarType dtype) { return at::empty(sizes, dtype); }

at::Tensor empty_like(const at::Tensor& like, at::ScalarType dtype) {
  return at::empty_like(like, dtype);
}

at::Tensor zeros(at::IntArrayRef sizes, at::ScalarType dtype) { return at::zeros(sizes, dtype); }

at::Tensor full(at::IntArrayRef sizes, double value, at::ScalarType dtype) {
  return at::full(sizes, value, dtype);
}

}  // namespace sslops
