// Arithmetic of chunks, tiles, splits and ring slots: plain functions of integers, for host and
// device alike. Whatever may pass 2^31 (rows times features, elements of a tensor) is int64_t.
#pragma once
#include <cstdint>

#ifdef __CUDACC__
#define SSLOPS_HD __host__ __device__
#else
#define SSLOPS_HD
#endif

namespace sslops {

SSLOPS_HD constexpr int64_t ceil_div(int64_t n, int64_t by) { return (n + by - 1) / by; }
SSLOPS_HD constexpr int64_t round_up(int64_t n, int64_t to) { return ceil_div(n, to) * to; }

// Part `part` of `parts` of `items` consecutive items starts here and ends where the next starts;
// parts differ by at most one item.
SSLOPS_HD constexpr int64_t part_begin(int64_t items, int64_t parts, int64_t part) {
  const int64_t each = items / parts, more = items % parts;
  return part * each + (part < more ? part : more);
}

// Parts of `tiles` columns that `blocks` blocks of rows are given to fill `processors`, twice each
// so that one block computes while the other loads.
SSLOPS_HD constexpr int64_t choose_parts(int64_t blocks, int64_t tiles, int64_t processors) {
  const int64_t wanted = ceil_div(2 * processors, blocks);
  return wanted < 1 ? 1 : (wanted > tiles ? (tiles > 0 ? tiles : 1) : wanted);
}

// The tensor that chunk `chunk` of all tensors' chunks belongs to: first_chunk[n] is the number of
// chunks before tensor n, first_chunk[count] of all. Tensors without elements have no chunk.
SSLOPS_HD inline int find_tensor(const int* first_chunk, int count, int chunk) {
  int low = 0, high = count;  // first_chunk[low] <= chunk < first_chunk[high]
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    if (first_chunk[middle] <= chunk)
      low = middle;
    else
      high = middle;
  }
  return low;
}

// Of B new rows, the first that is not overwritten by a later one of them in a ring of K slots.
SSLOPS_HD constexpr int64_t first_kept(int64_t B, int64_t K) { return B > K ? B - K : 0; }

// Slot of new row i in a ring of K slots that `total` rows were ever written to.
SSLOPS_HD constexpr int64_t ring_slot(int64_t total, int64_t i, int64_t K) {
  return ((total % K + K) % K + i % K) % K;  // in [0, K) also of a total below zero
}

// The row that `target` names, -1 if it is none of `rows`.
SSLOPS_HD constexpr int64_t named_row(int64_t target, int64_t rows) {
  return target >= 0 && target < rows ? target : -1;
}

// Byte offset of 16-byte piece `piece` of row `row` in a tile of shared memory whose rows have
// `row_bytes`, a multiple of 128. Eight rows' pieces of one column lie in eight different banks.
SSLOPS_HD constexpr int tile_offset(int row, int piece, int row_bytes) {
  return row * row_bytes + ((piece ^ (row & 7)) << 4);
}

// Columns of a tile of `width` features: fewer where a warp's accumulators of them leave less room.
SSLOPS_HD constexpr int tile_columns(int width, int element) {
  return width == 256 && element == 2 ? 32 : 64;
}

// Shared memory of a block: its 64 rows and two tiles of columns, or, if the features come in
// several chunks, two stages of both.
SSLOPS_HD constexpr int64_t tile_bytes(int64_t features, int width, int element) {
  const int64_t rows = 64, columns = tile_columns(width, element);
  return (features <= width ? rows + 2 * columns : 2 * (rows + columns)) * width * element;
}

// Features that a tile holds: all of them where they fit, else the widest chunk of which the
// multiprocessor can hold two. `most` is the largest compiled for the dtype.
SSLOPS_HD constexpr int choose_width(int64_t features, int element, int most, int64_t limit) {
  const int least = most / 4;
  int width = least;
  while (width < features && width < most) width *= 2;
  while (width > least && tile_bytes(features, width, element) > limit) width /= 2;
  return width;
}

}  // namespace sslops
