// Pairwise sigmoid loss on the CPU: no statistics join the pairs, so one pass gives the loss and
// all gradients; docs/math/sigmoid_loss.md has the formulas.

#include <limits>
#include <tuple>
#include <vector>

#include "isa/isa.h"
#include "ops/ops.h"
#include "tiles/cross_problem.h"
#include "tiles/schedule.h"
#include "tiles/tensors.h"

namespace sslops {
using Results = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor>;

Results sigmoid_loss_fwd(const at::Tensor& queries, const at::Tensor& keys,
                         const OptionalTensor& query_ids, const OptionalTensor& key_ids,
                         const OptionalTensor& scale, double scale_factor,
                         const OptionalTensor& bias, double bias_value, bool normalize,
                         bool grads) {
  TORCH_CHECK_VALUE(queries.dim() == 2 && keys.dim() == 2 && queries.numel() > 0 &&
                        keys.size(1) == queries.size(1) && queries.size(0) <= keys.size(0),
                    "sigmoid_loss: queries and keys must be [rows, D] with a key for each query, "
                    "got ",
                    queries.sizes(), " and ", keys.sizes());
  const double inverse = inverse_temperature(scale, scale_factor);
  const auto shape = [&](at::IntArrayRef sizes) {
    return empty(grads ? sizes : at::IntArrayRef{0}, at::kFloat);
  };
  Results out{empty({}, at::kFloat), shape(queries.sizes()), shape(keys.sizes()), shape({}),
              shape({})};
  auto& [loss, dqueries, dkeys, dscale, dbias] = out;
  if (!usable(inverse)) {
    for (auto* each : {&loss, &dqueries, &dkeys, &dscale, &dbias})
      each->fill_(std::numeric_limits<double>::quiet_NaN());
    return out;
  }

  const bool bf16 = multiplies_bf16(queries.scalar_type());
  const auto both = make_rows({{queries, normalize}, {keys, normalize}}, bf16);
  const Rows &x = both[0], &y = both[1];
  CrossProblem p = make_cross(x, y, inverse);
  p.bias = bias.has_value() ? bias->item().toFloat() : static_cast<float>(bias_value);
  Ids ids = make_ids(query_ids, key_ids, x.rows, y.rows);
  ids.rows.resize(x.rows, -1);
  ids.cols.resize(y.rows, -1);
  ids.point(p);
  p.grad_rows = p.grad_cols = grads;
  at::Tensor dx = zeros({grads ? x.rows : 0, x.ld}, at::kFloat);
  at::Tensor dy = zeros({grads ? y.rows : 0, x.ld}, at::kFloat);
  p.to_rows.dx = dx.mutable_data_ptr<float>();
  p.to_cols.dx = dy.mutable_data_ptr<float>();

  const LatinSquare squares = latin_square(x.rows, y.rows, x.D);
  at::Tensor scratch = empty({squares.threads, kCrossScratch}, at::kFloat);
  float* data = scratch.mutable_data_ptr<float>();
  std::vector<double> losses(squares.count * squares.count, 0.0), sums = losses;
  const auto tile = cross(bf16).sigmoid;
  for_each_tile(squares, [&](Range i, Range j, int64_t thread, int64_t square) {
    tile(p, i, j, data + thread * kCrossScratch, &losses[square], &sums[square]);
  });
  double total = 0.0, total_g = 0.0;  // in order: the same bits whatever the threads did
  for (size_t n = 0; n < losses.size(); ++n) total += losses[n], total_g += sums[n];
  loss.fill_(total);
  if (!grads) return out;
  dbias.fill_(total_g);
  dscale.fill_(finish_gradient(x, p.to_rows.dx, x.ld, inverse, normalize, dqueries));
  finish_gradient(y, p.to_cols.dx, x.ld, inverse, normalize, dkeys);
  return out;
}

}  // namespace sslops
