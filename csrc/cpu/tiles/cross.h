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
  bool columns;          // sums and gradients of the columns too
  bool shared;           // rows and columns are one set: row and column arrays are the same

  // A pair is left out if the ids are equal and not negative, or, `within`, if they are not so; and
  // if the column is the row's own. Null: nothing is left out.
  const int32_t* row_id;
  const int32_t* col_id;
  const int32_t* own;
  bool within;

  // All similarities [rows, kept_ld], left by `forward` for `backward`; or null.
  float* kept;
  int64_t kept_ld;

  // Forward, accumulated: base 2.
  float* row_max;
  float* row_sum;
  float* col_max;
  float* col_sum;
  float* row_own;   // similarity with the row's own column, or null
  float* row_best;  // largest similarity that is not left out, or null
  float* col_best;

  // Backward. Weights are upstream gradients, times 2^-lse2 unless online (with columns).
  const float* row_weight;
  const float* row_lse2;
  const float* col_weight;  // null without columns
  const float* col_lse2;
  // Pairs of equal labels: minus row_share + col_share, times 2^(logit - share_lse2) if given.
  const int32_t* label;
  const float* share;
  const float* share_lse2;
  bool want_rows, want_cols;

  // Sigmoid: the logit is scale * <x_i, y_j> + bias, negated for a pair of `own`.
  float scale, bias;

  // Joint: 1 over the sum of a row's exponentials, its positive's among them; 0 past the last row.
  const float* row_over;

  // Attend: rows are keys, `base` the index of the first; `own` belongs to the columns.
  int64_t base;
};

// Calls that may run at once must not share rows, nor columns. Ranges are multiples of kPanel, at
// most kTile long.
struct CrossKernels {
  void (*forward)(const CrossProblem&, Range i, Range j, float* scratch);
  void (*backward)(const CrossProblem&, Range i, Range j, float* scratch);
  // Losses and gradients of one tile; returns the sums of both in double precision.
  void (*sigmoid)(const CrossProblem&, Range i, Range j, float* scratch, double* loss, double* g);
  // Rows are keys that lie as staged by the caller, columns are queries: running maxima, sums and
  // weighted means of keys (to_cols.dx) of the queries, one tile of keys after the other.
  void (*attend)(const CrossProblem&, Range i, Range j, float* scratch);
  // The two halves of a tile whose exponentials e [i, kTileStride] the caller keeps in between, not
  // online: sums of rows, and keys weighted with e to to_rows.dx; then, once row_over is known,
  // queries weighted with e * row_over * row_weight to to_cols.dx.
  void (*gather)(const CrossProblem&, Range i, Range j, float* e, float* scratch);
  void (*spread)(const CrossProblem&, Range i, Range j, float* e, float* scratch);
};

// Floats of scratch a thread: a tile, two tiles in bfloat16, vectors of its columns.
constexpr int64_t kCrossScratch = kTile * kTileStride + kTile * kHalfStride + 4 * kTile * 16;

const CrossKernels& cross_portable();
const CrossKernels& cross_avx2();  // these four on x86-64 only
const CrossKernels& cross_avx512();
const CrossKernels& cross_dot();
const CrossKernels& cross_amx();

}  // namespace sslops
