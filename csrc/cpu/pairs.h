// Runs a function on every unordered pair of row blocks, in parallel, without two calls ever
// sharing a block and in an order of updates that does not depend on which thread does what.
#pragma once
#include <ATen/Parallel.h>

#include <algorithm>
#include <atomic>
#include <utility>

#include "tiles.h"

namespace sslops {

struct Blocks {
  int64_t rows;   // a multiple of kPanel
  int64_t block;  // rows of a block, a multiple of kPanel
  int64_t tile;   // rows of a tile, at most kTile
  int64_t count() const { return (rows + block - 1) / block; }
  Range range(int64_t n) const { return {n * block, std::min(rows, (n + 1) * block)}; }
};

// Four blocks a thread give each round two pairs a thread; small problems get one block.
inline Blocks make_blocks(int64_t rows, int64_t D) {
  constexpr int64_t kSerial = 1 << 20;  // multiply-adds below which a second thread costs more
  const bool serial = rows * rows * D < kSerial || at::in_parallel_region();
  const int64_t parts = serial ? 1 : 4 * at::get_num_threads();
  int64_t block = (rows + parts - 1) / parts;
  block = (block + kPanel - 1) / kPanel * kPanel;
  if (!serial) block = std::clamp<int64_t>(block, 2 * kPanel, 4 * kTile);
  // A tile of the diagonal does both of its halves, so a small problem has smaller tiles.
  const int64_t tile = rows >= 8 * kTile ? kTile : rows >= 512 ? kTile / 2 : kTile / 4;
  return {rows, block, std::min(tile, block)};
}

// The tiles of a pair of blocks, both halves of the diagonal in one call.
template <class Tile>
void for_each_tile(const Blocks& blocks, int64_t a, int64_t b, Tile&& tile) {
  const Range A = blocks.range(a), B = blocks.range(b);
  for (int64_t i = A.begin; i < A.end; i += blocks.tile)
    for (int64_t j = a == b ? i : B.begin; j < B.end; j += blocks.tile)
      tile(Range{i, std::min(A.end, i + blocks.tile)}, Range{j, std::min(B.end, j + blocks.tile)});
}

// Calls work(n, thread) for n < count, shared out among the threads as they come free.
template <class Work>
void share_out(int64_t count, Work&& work) {
  const int64_t threads =
      at::in_parallel_region() ? 1 : std::min<int64_t>(count, at::get_num_threads());
  if (threads <= 1) {
    for (int64_t n = 0; n < count; ++n) work(n, 0);
    return;
  }
  std::atomic<int64_t> next{0};
  at::parallel_for(0, threads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t)
      for (int64_t n; (n = next.fetch_add(1, std::memory_order_relaxed)) < count;) work(n, t);
  });
}

// Calls tile(Range i, Range j, thread) for every tile with i <= j: first the pairs (a, a), then a
// round-robin tournament, each block against each other one, in which a block plays once a round.
template <class Tile>
void for_each_pair(const Blocks& blocks, Tile&& tile) {
  const int64_t count = blocks.count();
  share_out(count, [&](int64_t n, int64_t thread) {
    for_each_tile(blocks, n, n, [&](Range i, Range j) { tile(i, j, thread); });
  });
  const int64_t players = count + count % 2;  // an odd one out rests a round
  for (int64_t round = 0; round + 1 < players; ++round) {
    share_out(players / 2, [&](int64_t n, int64_t thread) {
      int64_t a = (round + n) % (players - 1);
      int64_t b = n == 0 ? players - 1 : (round - n + players - 1) % (players - 1);
      if (a > b) std::swap(a, b);
      if (b >= count) return;
      for_each_tile(blocks, a, b, [&](Range i, Range j) { tile(i, j, thread); });
    });
  }
}

}  // namespace sslops
