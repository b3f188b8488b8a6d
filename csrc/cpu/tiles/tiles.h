// What a tile of similarities needs, and the functions that compute one. No ATen here: the files
// that implement these are compiled once for each instruction set.
#pragma once
#include <cstdint>

namespace sslops {

constexpr int64_t kPanel = 32;  // columns of a panel; rows are padded to a multiple of it
constexpr int64_t kTile = 256;  // rows and columns of a tile, at most
constexpr int64_t kTileStride = kTile + 16;  // an odd number of cache lines: no set conflicts
constexpr float kMasked = -1e30f;            // a logit that no sum may see

struct Range {
  int64_t begin, end;
  int64_t size() const { return end - begin; }
};

// One set of rows against itself: s_ij = <x_i, x_j>, logits scale2 * s_ij in base 2.
struct TileProblem {
  int64_t M;        // rows
  int64_t samples;  // rows i and j are views of one sample if i = j modulo this
  int64_t D;        // features
  int64_t ld;       // stride of x and dx; D rounded up and an odd number of cache lines
  float scale2;     // log2(e) / temperature
  float masked;     // the similarity whose logit is kMasked, finite
  bool online;      // logits may pass +-80: keep a maximum for each row
  bool stats;       // also compute best_positive and best_negative

  const float* x;       // [rows, ld], zero outside [M, D]
  const float* panels;  // [rows / kPanel, D, kPanel]: the rows of a panel as columns

  // The same rows for bfloat16 products; see bf16.h.
  int64_t ld16;
  const uint16_t* x16;       // [rows, ld16]
  const uint16_t* panels16;  // [rows / 16, ld16 / 2, 16, 2]
  const uint16_t* pairs16;   // [rows / 2, ld16, 2]

  // Forward, all [rows], accumulated by `forward`.
  float* row_max;        // base 2, used if online
  float* row_sum;        // sum of 2^(logit - row_max), or of 2^logit
  float* positive;       // sum of the logits of the positives, base 2
  float* best_positive;  // largest similarity of a positive
  float* best_negative;

  // Backward.
  const float* weight;  // [rows] upstream gradient; times 2^-lse2 unless online; zero past M
  const float* lse2;    // [rows] log-sum-exp in base 2, used if online
  // [rows] upstream gradient over the number of positives. The bfloat16 tiles subtract
  // pull_i + pull_j of a positive pair before they round: afterwards, where both are nearly equal,
  // only the rounding of two large numbers would be left.
  const float* pull;
  float* dx;  // [rows, ld], accumulated by `backward`: sum over j of G_ij x_j
};

// Both update the rows of i and of j, so no two calls may run at once that share a row. i = j is a
// tile of the diagonal. Ranges are multiples of kPanel, at most kTile long.
struct TileKernels {
  void (*forward)(const TileProblem&, Range i, Range j, float* scratch);
  void (*backward)(const TileProblem&, Range i, Range j, float* scratch);
};

// Floats of scratch a thread: a tile and two vectors for each of its rows in float32; a strip of 32
// rows and two tiles of gradients in bfloat16 (tiles_bf16.h).
constexpr int64_t kHalfStride = kTile + 32;  // bfloat16 elements: an odd number of cache lines
constexpr int64_t kScratchF32 = kTile * kTileStride + 2 * kTile * 16;
constexpr int64_t kScratchAmx = 32 * kTileStride + kTile * kHalfStride;
constexpr int64_t kScratch = kScratchF32 > kScratchAmx ? kScratchF32 : kScratchAmx;

// Rounds kPanel rows [kPanel, ld] float32 to bfloat16 and writes their part of the three layouts
// of TileProblem.
using PackPanel = void (*)(const float* rows, int64_t ld, int64_t ld16, int64_t panel,
                           uint16_t* x16, uint16_t* panels16, uint16_t* pairs16);

}  // namespace sslops
