// What InfoNCE's ops on the CPU share where queries and negatives are both trained.
#pragma once
#include <array>
#include <vector>

#include "ops/info_nce_args.h"
#include "tiles/cross_problem.h"

namespace sslops {

// Queries against keys, or against negatives; the positives are always keys.
struct InfoNceProblem {
  bool keys_are_negatives;
  Rows x, y;
  Rows keys;  // unless they are the negatives: unit rows, only ever read one by one
  CrossProblem p;
  Ids ids;
  std::vector<int32_t> targets;

  InfoNceProblem(const InfoNceArgs& a, double scale);

  const Rows& positives() const { return keys_are_negatives ? y : keys; }

  // On every tile; two at once share no row and no column.
  void run(const CrossProblem& problem,
           void (*tile)(const CrossProblem&, Range, Range, float*)) const;
};

// Losses of rows whose positive is kept out of their sum.
void finish_losses(int64_t M, const float* maximum, const float* sum, const float* positive,
                   const float* best, double scale, at::Tensor& loss, at::Tensor& lse,
                   at::Tensor& hit);

// Where the temperature is no positive number: losses and, of `saved`, what has been made.
void fill_with_nan(const InfoNceArgs& a, InfoNceResults& results);
void fill_with_nan(InfoNceGradients& gradients);

// Unfilled, but for that of the scale, and empty where they are not needed; `wide`: float32
// whatever the inputs are.
InfoNceGradients room_for_gradients(const InfoNceArgs& a, std::array<bool, 3> needs, bool wide);

// Sums over the negatives: dx of the queries, dk of the keys, dn of negatives that are no keys;
// null where no gradient is wanted. dx still counts `times`, if given.
struct Sums {
  float *dx, *dk, *dn;
  const float* times;
};

// Adds what the positives pull, c_m k_t(m) to dx and c_m x_m to dk, and takes all through the
// norms, times `scale`, into `out`; returns the sum of <x, dx>.
double finish_gradients(const InfoNceProblem& all, const Sums& sums, const std::vector<float>& pull,
                        double scale, bool normalize, const InfoNceGradients& out);

// The losses and hits, into `results`. `similarities`: where they are left, or null.
void info_nce_statistics(const InfoNceArgs& a, const InfoNceProblem& all, double inverse,
                         float* similarities, InfoNceResults& results);

// Into `out`, as room_for_gradients made it, from the losses. `similarities`: those left, or null.
void info_nce_gradients(const InfoNceArgs& a, const InfoNceProblem& all,
                        const at::Tensor& grad_loss, const OptionalTensor& grad_key_loss,
                        const InfoNceSaved& of, double inverse, const float* similarities,
                        InfoNceGradients& out);

// The plans that are no two passes over all similarities.
InfoNceResults info_nce_grad_in_forward(const InfoNceArgs& a);
InfoNceResults info_nce_frozen_keys(const InfoNceArgs& a);

// What grad_in_forward left, times what its losses are differentiated by; null if that is no
// multiple of row_weights.
std::optional<InfoNceGradients> info_nce_multiples(const InfoNceArgs& a, const InfoNceSaved& saved,
                                                   const at::Tensor& grad_loss,
                                                   const OptionalTensor& grad_key_loss,
                                                   std::array<bool, 3> needs);

}  // namespace sslops
