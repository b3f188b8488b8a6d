// Two sets of rows against each other, or one against itself: what a tile of similarities needs,
// and the functions that work on one. No ATen here; cross_tiles.h has the code.
#pragma once
#include <cstdint>

#include "tiles/tiles.h"

namespace sslops {

// Logits are scale2 * <x_i, y_j> in base 2. Arrays of rows are padded to a multiple of kPanel.
struct CrossProblem {
  TileProblem similar;  // x (x16) of the rows, panels (panels16) of the columns
  TileProblem to_rows;  // x (pairs16) of the columns, dx of the rows
  TileProblem to_cols;  // x (pairs16) of the rows, dx of the columns
  int64_t M, N;
  float scale2, masked;  // as in TileProblem
  bool online;           // logits may pass +-80: keep a maximum for each row and column
  bool symmetric;        // sums and gradients of the columns too
  bool shared;           // rows and columns are one set: row and column arrays are the same

  // A pair is masked if the ids are equal and not negative, or, with `same_id_only`, if they are
  // not so; and if the column is the row's target. Null: nothing is masked.
  const int32_t* row_id;
  const int32_t* col_id;
  const int32_t* targets;
  bool same_id_only;

  // All similarities [rows, saved_ld], saved by `forward` for `backward`; or null.
  float* saved;
  int64_t saved_ld;

  // Forward, accumulated: base 2.
  float* row_max;
  float* row_sum;
  float* col_max;
  float* col_sum;
  float* target_similarity;  // of each row with its target, or null
  float* row_best;           // largest similarity that is not masked, or null
  float* col_best;

  // Backward. Weights are upstream gradients, times 2^-lse2 unless online (if symmetric).
  const float* row_weight;
  const float* row_lse2;
  const float* col_weight;  // null if not symmetric
  const float* col_lse2;
  // Pairs of equal labels: minus the weights of row and column, each times 2^(logit -
  // positive_lse2) unless that is null.
  const int32_t* label;
  const float* positive_weight;
  const float* positive_lse2;
  bool grad_rows, grad_cols;  // which sides need a gradient

  // Sigmoid: the logit is scale * <x_i, y_j> + bias, negated for the positive i = j.
  float scale, bias;

  // row_pass, column_pass: 1 over the sum of a row's exponentials, its positive's among them; 0
  // past the last row.
  const float* inverse_sum;

  // attend: rows are keys, `first_key` the index of the first; `targets` belongs to the columns.
  int64_t first_key;
};

// Calls that may run at once must not share rows, nor columns. Ranges are multiples of kPanel, at
// most kTile long.
struct CrossKernels {
  void (*forward)(const CrossProblem&, Range i, Range j, float* scratch);
  void (*backward)(const CrossProblem&, Range i, Range j, float* scratch);
  // Losses and gradients of one tile; returns the sums of both in double precision.
  void (*sigmoid)(const CrossProblem&, Range i, Range j, float* scratch, double* loss, double* g);
  // Rows are a tile of keys in the caller's buffer, columns are queries: running maxima, sums and
  // weighted means of keys (to_cols.dx) of the queries, one tile of keys after the other.
  void (*attend)(const CrossProblem&, Range i, Range j, float* scratch);
  // The two passes over a tile whose exponentials e [i, kTileStride] the caller stores in between,
  // not online: sums of rows, and keys weighted with e to to_rows.dx; then, once inverse_sum is
  // known, queries weighted with e * inverse_sum * row_weight to to_cols.dx.
  void (*row_pass)(const CrossProblem&, Range i, Range j, float* e, float* scratch);
  void (*column_pass)(const CrossProblem&, Range i, Range j, float* e, float* scratch);
};

// Floats of scratch a thread: a tile, two tiles in bfloat16, vectors of its columns.
constexpr int64_t kCrossScratch = kTile * kTileStride + kTile * kHalfStride + 4 * kTile * 16;

}  // namespace sslops
