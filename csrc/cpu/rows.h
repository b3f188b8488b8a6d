// Unit rows: the input of every similarity kernel, padded, in the layouts that the tiles read.
#pragma once
#include <ATen/core/Tensor.h>

#include <vector>

#include "tiles.h"

namespace sslops {

struct Rows {
  int64_t M, D;
  int64_t rows;  // M rounded up to kPanel
  int64_t ld, ld16;
  bool amx;           // the bfloat16 layouts below are filled, else the float32 ones
  at::Tensor x;       // [rows, ld] float32
  at::Tensor panels;  // [rows / kPanel, D, kPanel] float32
  at::Tensor x16, panels16, pairs16;  // see TileProblem
  std::vector<float> norm;            // [M] of the input rows; 1 if not normalised
  double largest;                     // bound on |<x_i, x_j>|; infinite if an input is not finite

  // Row n as float32, [D]; `buffer` [D] is used if it must be converted.
  const float* row(int64_t n, float* buffer) const;
  void point(TileProblem& problem) const;
};

// <a, b> of n floats, in double precision and always in the same order.
double dot(const float* a, const float* b, int64_t n);

constexpr double kNormEps = 1e-12;  // of torch.nn.functional.normalize

// z [M, D], float32, float16 or bfloat16, any strides.
Rows make_rows(const at::Tensor& z, bool normalize);

}  // namespace sslops
