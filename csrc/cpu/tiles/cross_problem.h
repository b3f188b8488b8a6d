// What the ops on two sets of rows share: the problem's fields, ids, targets, the last step of a
// gradient.
#pragma once
#include <ATen/core/Tensor.h>

#include <cmath>
#include <optional>
#include <vector>

#include "tiles/cross.h"
#include "tiles/rows.h"

namespace sslops {

using OptionalTensor = std::optional<at::Tensor>;

constexpr double kLn2 = 0.6931471805599453;
// exp(logit) and sums of M of them stay normal float32 numbers, and so do their reciprocals times
// any weight down to 1e-3 of the largest: no maximum is needed below this.
constexpr double kLargestLogit = 80.0;

double inverse_temperature(const OptionalTensor& scale, double factor);
inline bool usable(double scale) { return scale > 0 && std::isfinite(scale); }

// log(1 + exp(d)) without overflow or loss of digits.
inline double softplus(double d) {
  return d > 0 ? d + std::log1p(std::exp(-d)) : std::log1p(std::exp(d));
}

// Layouts and scalars of x against y; the results are pointed to by the callers.
CrossProblem make_cross(const Rows& x, const Rows& y, double scale);

// Ids of two lists as small integers, padded with -1; equal where the ids are, negative where they
// are.
struct Ids {
  std::vector<int32_t> rows, cols;
  void point(CrossProblem& p) const;
};
Ids make_ids(const OptionalTensor& row_ids, const OptionalTensor& col_ids, int64_t rows,
             int64_t cols);

// The column of each row's positive, padded with -1; n for row n without targets.
std::vector<int32_t> make_targets(const OptionalTensor& targets, int64_t M, int64_t N,
                                  int64_t rows);

// Rows in the order of their targets: those of key k are order[first[k]] .. order[first[k + 1]].
struct ByTarget {
  std::vector<int64_t> order, first;
};
ByTarget by_target(const std::vector<int32_t>& targets, int64_t M, int64_t N);

// `grad` over its largest magnitude, which is returned: a small 1/M then costs no range.
float relative_weights(const at::Tensor& grad, int64_t M, float* out);

// Weight and lse of rows or columns for the tiles of a gradient; true if a factor would be flushed.
bool fill_gradient_side(const float* weight, const float* lse, int64_t M, bool fold, float* out,
                        float* lse2);

// Gradient dx of unit row m, times `scale`, to that of the row before it was normalised, in row m
// of `out` [M, D], in its dtype; returns <x_m, dx> before the scale. `buffer` [D].
double finish_row(const Rows& x, int64_t m, const float* dx, double scale, bool normalize,
                  float* buffer, const at::Tensor& out);

// All rows, of dx [rows, ld]; returns the sum.
double finish_gradient(const Rows& x, const float* dx, int64_t ld, double scale, bool normalize,
                       const at::Tensor& out);

}  // namespace sslops
