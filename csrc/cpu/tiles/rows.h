// Unit rows: the input of every similarity kernel, padded, in the layouts that the tiles read.
#pragma once
#include <ATen/core/Tensor.h>

#include <algorithm>
#include <initializer_list>
#include <vector>

#include "tiles/tiles.h"

namespace sslops {

struct Rows {
  int64_t M, D;
  int64_t rows;  // M rounded up to kPanel
  int64_t ld, ld16;
  bool bf16;          // the bfloat16 layouts below are filled, else the float32 ones
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

// Whether products with rows of this dtype are done in bfloat16.
bool multiplies_bf16(at::ScalarType dtype);

// z [M, D], float32, float16 or bfloat16, any strides; `bf16`: in the bfloat16 layouts.
Rows make_rows(const at::Tensor& z, bool normalize, bool bf16);

// Several at once, in one parallel region.
struct RowSource {
  const at::Tensor& z;
  bool normalize;
};
std::vector<Rows> make_rows(std::initializer_list<RowSource> sources, bool bf16);

// Row n of z [M, D] as float32 to out [D], divided by its norm if asked for.
void unit_row(const at::Tensor& z, int64_t n, bool normalize, float* out);

// Gradient v [D] of unit row x, times `scale`, through the division by its norm, to out [D];
// returns <x, v>.
template <class T>
double through_norm(const float* x, const float* v, int64_t D, double norm, double scale,
                    bool normalize, T* out) {
  const double inside = dot(v, x, D);
  const float by = static_cast<float>(normalize ? scale / std::max(norm, kNormEps) : scale);
  const float along = normalize && !(norm < kNormEps) ? static_cast<float>(inside) : 0.0f;
  for (int64_t d = 0; d < D; ++d) out[d] = static_cast<T>(by * (v[d] - along * x[d]));
  return inside;
}

}  // namespace sslops
