// What InfoNCE's ops on the CPU share where queries and negatives are both trained.
#pragma once
#include <array>
#include <tuple>
#include <vector>

#include "cross_problem.h"

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
  void run(void (*tile)(const CrossProblem&, Range, Range, float*)) const;
};

// Losses of rows whose positive is kept out of their sum.
void finish_losses(int64_t M, const float* maximum, const float* sum, const float* positive,
                   const float* best, double scale, at::Tensor& loss, at::Tensor& lse,
                   at::Tensor& hit);

// Adds what the positives pull: c_m k_t(m) to dx and, where keys are trained, c_m x_m to dk.
void add_positives(const InfoNceProblem& all, const std::vector<float>& pull, float* dx, float* dk,
                   int64_t ld);

// loss, lse, key_loss, key_lse, hit, key_hit
using Statistics =
    std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor>;
// of queries, keys, negatives and the factor of the logits
using Gradients = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor>;

Statistics info_nce_fwd(const at::Tensor& queries, const at::Tensor& keys,
                        const OptionalTensor& negatives, const OptionalTensor& targets,
                        const OptionalTensor& query_ids, const OptionalTensor& key_ids,
                        const OptionalTensor& scale, double scale_factor, bool within, bool columns,
                        bool normalize, bool stats);

// `wide`: float32 gradients, whatever the inputs are.
Gradients info_nce_gradients(const at::Tensor& grad_loss, const OptionalTensor& grad_key_loss,
                             const at::Tensor& queries, const at::Tensor& keys,
                             const OptionalTensor& negatives, const OptionalTensor& targets,
                             const OptionalTensor& query_ids, const OptionalTensor& key_ids,
                             const at::Tensor& loss, const at::Tensor& lse,
                             const at::Tensor& key_loss, const at::Tensor& key_lse,
                             const OptionalTensor& scale, double scale_factor, bool within,
                             bool normalize, std::array<bool, 3> needs, bool wide);

}  // namespace sslops
