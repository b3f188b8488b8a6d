// The rows that the tile kernels read: unit rows, or a tensor as it lies.
#pragma once
#include "host.h"
#include "index.h"

namespace sslops {

struct UnitRows {
  const void* from;
  void* to;      // [rows, ld]
  float* norms;  // [rows], written if normalize
  int64_t rows, D, ld, row_stride, column_stride;
  Kind from_kind, to_kind;
  bool normalize;
};

struct Rows {
  std::optional<Tensor> values, norms;  // [rows, ld], [rows] if they were normalised
  int64_t rows, D, width, ld;           // width: D up to whole 16 bytes

  const void* data() const { return values->const_data_ptr(); }
  const float* norm() const { return pointer<float>(norms); }
};

// `tensor` [rows, D] of any floating dtype and strides as rows of `type`; the tensor itself where
// there is nothing to do.
Rows make_rows(const Device& device, const Tensor& tensor, ScalarType type, bool normalize);

}  // namespace sslops
