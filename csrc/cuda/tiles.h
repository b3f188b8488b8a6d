// All pairs of M rows x_i with N columns y_j, in tiles that never leave the multiprocessor.
// s_ij = scale <x_i, y_j>; pairs that are left out have s_ij = -inf; powers are of two.
//
//   kStats     per row and part of the columns: m_i = max_j s_ij, l_i = sum_j exp(s_ij - m_i)
//   kSingle    these, and o_i = sum_j exp(s_ij - m_i) y_j
//   kGradient  o_i = sum_j g_ij y_j,
//              g_ij = w_i exp(s_ij - lse_i) + v_j exp(s_ij - lse'_j), in units of `grad_scale`
//
// A block owns 64 rows and one part of the columns, 64 or 32 at a time: four warps of 16 rows. The
// next tile is copied while this one is multiplied. Features wider than W come in chunks, and a
// block accumulates one chunk of o; its own chunk comes last, so that it still lies there for P Y.
// Nothing is shared between blocks: the parts are added by finish.h, in the same order on every
// run. FlashAttention (Dao 2023, arXiv:2307.08691) has this shape.
#pragma once
#include "fragment.h"
#include "index.h"
#include "machine.h"
#include "numbers.h"

namespace sslops {

constexpr int kRows = 64;      // of a tile
constexpr int kThreads = 128;  // four warps

// exp(s - m) is stored times 2^lift: the least normal number of float16 is 2^-14, the largest 2^16.
template <class T>
constexpr float kLift = 0.0f;
template <>
constexpr float kLift<Half> = 15.0f;

enum class Pass { kStats, kSingle, kGradient };

struct TileProblem {
  const void *x, *y;  // [M, width], [N, width], 16 bytes aligned, rows ld_x, ld_y elements apart
  int64_t ld_x, ld_y, M, N, width;  // width: features, a multiple of 16 bytes
  Scale scale;
  const int64_t *row_ids, *col_ids;  // both or none; a negative id matches nothing
  bool same_id_only;                 // leave out what does not match instead of what matches
  bool keys_are_negatives;           // leave out the positives:
  const int64_t *row_targets, *col_targets;  // row i's column, or column j's row, or if none i = j
  float *part_max, *part_sum;                // [parts, M]
  float* part_out;                           // [parts, M, ld_out]
  int64_t ld_out;
  // kGradient; either pair may be missing
  const float *row_weight, *row_lse;  // [M]
  const float *col_weight, *col_lse;  // [N]
  const float* grad_scale;            // power of two by which weights are multiplied
};

// [kCount, W] of a matrix into shared memory, zeros beyond its edges.
template <class T, int W, int kCount>
__device__ inline void copy_tile(unsigned char* tile, const void* from, int64_t ld, int64_t row,
                                 int64_t rows, int64_t column, int64_t width) {
  constexpr int kPiece = Fragment<T>::kPiece, kPieces = W / kPiece;
  const T* const matrix = static_cast<const T*>(from);
  for (int n = static_cast<int>(threadIdx.x); n < kCount * kPieces; n += kThreads) {
    const int r = n / kPieces, piece = n % kPieces;
    const bool valid = row + r < rows && column + piece * kPiece < width;
    const int64_t at = valid ? (row + r) * ld + column + piece * kPiece : 0;
    copy_async(tile + tile_offset(r, piece, W * static_cast<int>(sizeof(T))), matrix + at, valid);
  }
}

// -inf where a sum may not see a pair. s[n][2 half + e] is row `row` + 8 half of column
// `column` + 8 n + `offset` + e. What is read here lies in L1: registers are for the accumulators.
template <int kN>
__device__ inline void leave_out(float (&s)[kN][4], const TileProblem& p, int64_t row,
                                 int64_t column, int offset) {
  constexpr int kColumns = 8 * kN;
  const int inside = p.N - column < kColumns ? static_cast<int>(p.N - column) : kColumns;
  if (inside == kColumns && !p.keys_are_negatives && p.col_ids == nullptr) return;
  int skip[2] = {-1, -1};  // columns of this tile
  int64_t id[2] = {-1, -1};
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int64_t i = row + 8 * half < p.M ? row + 8 * half : p.M - 1;
    if (p.row_ids != nullptr) id[half] = p.row_ids[i];
    if (p.keys_are_negatives && p.col_targets == nullptr) {
      const int64_t skipped = named_row(p.row_targets != nullptr ? p.row_targets[i] : i, p.N);
      const int64_t from_here = skipped - column;
      skip[half] = from_here >= 0 && from_here < kColumns ? static_cast<int>(from_here) : -1;
    }
  }
  const bool some =
      p.col_ids != nullptr || p.col_targets != nullptr || skip[0] >= 0 || skip[1] >= 0;
  if (inside == kColumns && !some) return;
#pragma unroll
  for (int n = 0; n < kN; ++n) {
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const int c = 8 * n + offset + e;
      const int64_t j = column + (c < inside ? c : inside - 1);
      const int64_t col_id = p.col_ids != nullptr ? p.col_ids[j] : -1;
      const int64_t col_skip = p.col_targets != nullptr ? p.col_targets[j] : -1;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const bool same = (col_id >= 0) & (col_id == id[half]);
        const bool hidden = (p.col_ids != nullptr) & (same != p.same_id_only);
        const bool positive = (skip[half] == c) | (col_skip == row + 8 * half);
        if ((c >= inside) | hidden | positive) s[n][2 * half + e] = -INFINITY;
      }
    }
  }
}

// Logits in place to exp(s - m) 2^lift; o and l follow the new maximum.
template <class T, int kN, int kOut>
__device__ inline void online(float (&s)[kN][4], float (&o)[kOut][4], float (&m)[2],
                              float (&l)[2]) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float top = m[half];
#pragma unroll
    for (int n = 0; n < kN; ++n) top = fmaxf(top, fmaxf(s[n][2 * half], s[n][2 * half + 1]));
    top = fmaxf(top, shuffle_xor(top, 1));
    top = fmaxf(top, shuffle_xor(top, 2));
    const float from = top == -INFINITY ? 0.0f : top;  // -inf - -inf would be NaN
    const float shrink = fast_exp2(m[half] - from);
    m[half] = top;
    l[half] *= shrink;
#pragma unroll
    for (int n = 0; n < kOut; ++n) {
      o[n][2 * half] *= shrink;
      o[n][2 * half + 1] *= shrink;
    }
#pragma unroll
    for (int n = 0; n < kN; ++n) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        float& value = s[n][2 * half + e];
        value = fast_exp2(value - from + kLift<T>);
        l[half] += value;
      }
    }
  }
}

// Logits in place to g; arguments as in leave_out.
template <int kN>
__device__ inline void weigh(float (&s)[kN][4], const TileProblem& p, int64_t row, int64_t column,
                             int offset) {
  const float grad_scale = *p.grad_scale;
  float row_weight[2] = {0.0f, 0.0f}, row_lse2[2] = {0.0f, 0.0f};
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int64_t i = row + 8 * half < p.M ? row + 8 * half : p.M - 1;
    if (p.row_weight == nullptr) continue;
    row_weight[half] = p.row_weight[i] * grad_scale;
    row_lse2[half] = p.row_lse[i] * kLog2e;
  }
#pragma unroll
  for (int n = 0; n < kN; ++n) {
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const int64_t c = column + 8 * n + offset + e, j = c < p.N ? c : p.N - 1;
      float col_weight = 0.0f, col_lse2 = 0.0f;
      if (p.col_weight != nullptr) {
        col_weight = p.col_weight[j] * grad_scale;
        col_lse2 = p.col_lse[j] * kLog2e;
      }
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float& value = s[n][2 * half + e];
        float g = 0.0f;
        if (p.row_weight != nullptr) g = row_weight[half] * fast_exp2(value - row_lse2[half]);
        if (p.col_weight != nullptr) g += col_weight * fast_exp2(value - col_lse2);
        value = g;
      }
    }
  }
}

template <class T, int W, Pass kPass>
__global__ void __launch_bounds__(kThreads) tile_kernel(TileProblem p) {
  using F = Fragment<T>;
  constexpr int kColumns = tile_columns(W, sizeof(T)), kN = kColumns / 8;
  constexpr int kRowBytes = W * static_cast<int>(sizeof(T));
  constexpr int kBytesX = kRows * kRowBytes, kBytesY = kColumns * kRowBytes;
  constexpr int kOut = kPass == Pass::kStats ? 1 : W / 8;           // accumulators of 8 columns
  [[maybe_unused]] constexpr int kUnroll = sizeof(T) == 4 ? 1 : 4;  // or ptxas spills
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int warp_row = static_cast<int>(threadIdx.x) / 32 * 16;
  const int64_t first_row = static_cast<int64_t>(blockIdx.x) * kRows;
  const int64_t part = blockIdx.y, parts = gridDim.y;
  const int own_chunk = static_cast<int>(blockIdx.z);
  const int64_t tiles = ceil_div(p.N, kColumns);
  const int64_t first_tile = part_begin(tiles, parts, part);
  const int64_t end_tile = part_begin(tiles, parts, part + 1);
  const int chunks = static_cast<int>(ceil_div(p.width, W));

  // one chunk: [x][y][y]; more: [x y][x y]
  unsigned char* const shared = shared_memory();
  const int stage_bytes = chunks == 1 ? kBytesY : kBytesX + kBytesY;
  int64_t next_tile = first_tile;  // what `start` copies next, and where to
  int next_chunk = 0, next_stage = 0;
  const auto start = [&] {
    if (next_tile < end_tile) {
      const int64_t column = int64_t{W} * ((own_chunk + 1 + next_chunk) % chunks);
      unsigned char* const stage = shared + next_stage * stage_bytes;
      if (chunks > 1 || next_tile == first_tile)
        copy_tile<T, W, kRows>(stage, p.x, p.ld_x, first_row, p.M, column, p.width);
      copy_tile<T, W, kColumns>(stage + kBytesX, p.y, p.ld_y, next_tile * kColumns, p.N, column,
                                p.width);
      next_stage ^= 1;
      if (++next_chunk == chunks) {
        next_chunk = 0;
        ++next_tile;
      }
    }
    commit_copies();  // also an empty group: there always is one younger than the awaited
  };

  const int64_t row = first_row + warp_row + lane / 4;  // and the one 8 below
  const float scale2 = p.scale.value() * kLog2e;
  float s[kN][4], o[kOut][4], m[2] = {-INFINITY, -INFINITY}, l[2] = {0.0f, 0.0f};
#pragma unroll
  for (int n = 0; n < kOut; ++n)
#pragma unroll
    for (int e = 0; e < 4; ++e) o[n][e] = 0.0f;

  start();
  int stage = 0, chunk = 0;
  for (int64_t tile = first_tile; tile < end_tile; stage ^= 1) {
    start();
    wait_copies<1>();
    barrier();
    const unsigned char* const x = shared + (chunks == 1 ? 0 : stage * stage_bytes);
    const unsigned char* const y = shared + stage * stage_bytes + kBytesX;
    if (chunk == 0) {
#pragma unroll
      for (int n = 0; n < kN; ++n)
#pragma unroll
        for (int e = 0; e < 4; ++e) s[n][e] = 0.0f;
    }
#pragma unroll kUnroll
    for (int k = 0; k < W; k += 16) {
      uint32_t a[F::kA];
      F::load_a(a, x, kRowBytes, warp_row, k, lane);
#pragma unroll
      for (int n = 0; n < kN; n += 2) {
        uint32_t b[F::kB];
        F::load_b(b, y, kRowBytes, 8 * n, k, lane);
        F::multiply(s[n], s[n + 1], a, b);
      }
    }
    if (++chunk == chunks) {
#pragma unroll
      for (int n = 0; n < kN; ++n)
#pragma unroll
        for (int e = 0; e < 4; ++e) s[n][e] *= scale2;
      leave_out(s, p, row, tile * kColumns, 2 * (lane % 4));
      if constexpr (kPass == Pass::kGradient)
        weigh(s, p, row, tile * kColumns, 2 * (lane % 4));
      else
        online<T>(s, o, m, l);
      if constexpr (kPass != Pass::kStats) {
#pragma unroll
        for (int n = 0; n < kN; n += 2) {
          uint32_t a[F::kA];
          F::a_of_c(a, s[n], s[n + 1]);
#pragma unroll
          for (int d = 0; d < kOut; d += 2) {
            uint32_t b[F::kB];
            F::load_b_of_rows(b, y, kRowBytes, 8 * n, 8 * d, lane);
            F::multiply(o[d], o[d + 1], a, b);
          }
        }
      }
      chunk = 0;
      ++tile;
    }
    barrier();  // before the next copy overwrites this stage
  }

#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int64_t at = part * p.M + row + 8 * half;
    const bool valid = row + 8 * half < p.M;
    if constexpr (kPass != Pass::kGradient) {
      l[half] += shuffle_xor(l[half], 1);
      l[half] += shuffle_xor(l[half], 2);
      if (valid && own_chunk == 0 && lane % 4 == 0) {
        p.part_max[at] = m[half];
        p.part_sum[at] = l[half];
      }
    }
    if constexpr (kPass != Pass::kStats) {
      float* const out = p.part_out + at * p.ld_out + own_chunk * W + 2 * (lane % 4);
#pragma unroll
      for (int n = 0; n < kOut; ++n) {
        if (!valid) continue;
        out[8 * n] = o[n][2 * half];
        out[8 * n + 1] = o[n][2 * half + 1];
      }
    }
  }
}

}  // namespace sslops
