// What InfoNCE's ops on the CPU share where queries and negatives are both trained.
#pragma once
#include <array>
#include <tuple>
#include <vector>

#include "tiles/cross_problem.h"

namespace sslops {

// Queries against keys, or against negatives; the positives are always keys.
struct InfoNceProblem {
  bool apart;  // the negatives are not the keys
  Rows x, y;
  Rows keys;  // if apart: unit rows, only ever read one by one
  CrossProblem p;
  Ids ids;
  std::vector<int32_t> own;

  InfoNceProblem(const at::Tensor& q, const at::Tensor& k, const OptionalTensor& negatives,
                 const OptionalTensor& targets, const OptionalTensor& query_ids,
                 const OptionalTensor& key_ids, double scale, bool within, bool normalize);

  const Rows& positives() const { return apart ? keys : y; }

  // On every tile; two at once share no row and no column.
  void run(const CrossProblem& problem,
           void (*tile)(const CrossProblem&, Range, Range, float*)) const;
};

// Losses of rows whose positive is kept out of their sum.
void finish_losses(int64_t M, const float* maximum, const float* sum, const float* positive,
                   const float* best, double scale, at::Tensor& loss, at::Tensor& lse,
                   at::Tensor& hit);

// loss, lse, key_loss, key_lse, hit, key_hit
using Statistics =
    std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor>;
using LossAndLse = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor>;
// of queries, keys, negatives and the factor of the logits
using Gradients = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor>;

// Where the temperature is no positive number.
Statistics without_statistics(int64_t M, int64_t N, bool stats);
Gradients all_nan(Gradients gradients);

// Unfilled, but for dscale, and empty where they are not needed; `wide`: float32 whatever the
// inputs are.
Gradients room_for_gradients(const at::Tensor& queries, const at::Tensor& keys,
                             const OptionalTensor& negatives, std::array<bool, 3> needs, bool wide);

// Sums over the negatives: dx of the queries, dk of the keys, dn of negatives apart; null where no
// gradient is wanted. dx still counts `times`, if given.
struct Sums {
  float *dx, *dk, *dn;
  const float* times;
};

// Adds what the positives pull, c_m k_t(m) to dx and c_m x_m to dk, and takes all through the
// norms, times `scale`, into `out`; returns the sum of <x, dx>.
double finish_gradients(const InfoNceProblem& all, const Sums& sums, const std::vector<float>& pull,
                        double scale, bool normalize, const Gradients& out);

// `kept`: where the similarities [rows of x, rows of y] are left, or null.
Statistics info_nce_statistics(const InfoNceProblem& all, double inverse, bool columns, bool stats,
                               float* kept);

// Into `out`, as room_for_gradients made it. `kept`: the similarities, or null.
Gradients info_nce_gradients(const InfoNceProblem& all, const at::Tensor& grad_loss,
                             const OptionalTensor& grad_key_loss, const LossAndLse& of,
                             double inverse, bool normalize, Gradients out, const float* kept);

}  // namespace sslops
