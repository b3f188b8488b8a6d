// Runs a function on every unordered pair of row blocks, in parallel, without two calls ever
// sharing a block, and with an order of updates that does not depend on which thread does what.
#pragma once
#include <ATen/Parallel.h>

#include <algorithm>
#include <atomic>
#include <thread>
#include <utility>
#include <vector>

#include "tiles/threads.h"
#include "tiles/tiles.h"

namespace sslops {

struct Blocks {
  int64_t rows;     // a multiple of kPanel
  int64_t block;    // rows of a block, a multiple of kPanel
  int64_t tile;     // rows of a tile, at most kTile
  int64_t threads;  // that work on them
  int64_t count() const { return (rows + block - 1) / block; }
  Range range(int64_t n) const { return {n * block, std::min(rows, (n + 1) * block)}; }
};

// Four blocks a thread give each round two pairs a thread; small problems stay on one thread.
inline Blocks make_blocks(int64_t rows, int64_t D) {
  const int64_t threads = threads_for(rows * rows * D);
  const int64_t parts = threads == 1 ? 1 : 4 * threads;
  int64_t block = ((rows + parts - 1) / parts + kPanel - 1) / kPanel * kPanel;
  if (threads > 1) block = std::clamp<int64_t>(block, 2 * kPanel, 4 * kTile);
  return {rows, block, std::min(kTile, block), threads};
}

// A tile of the diagonal does both of its halves; cut into small ones, it does little twice.
template <class Tile>
void for_each_diagonal_tile(Range range, Tile&& tile) {
  constexpr int64_t kSmall = 2 * kPanel;
  for (int64_t i = range.begin; i < range.end; i += kSmall)
    for (int64_t j = i; j < range.end; j += kSmall)
      tile(Range{i, std::min(range.end, i + kSmall)}, Range{j, std::min(range.end, j + kSmall)});
}

// The tiles (i, j) with i <= j of a pair of blocks.
template <class Tile>
void for_each_tile(const Blocks& blocks, int64_t a, int64_t b, Tile&& tile) {
  const Range A = blocks.range(a), B = blocks.range(b);
  for (int64_t i = A.begin; i < A.end; i += blocks.tile) {
    const Range rows{i, std::min(A.end, i + blocks.tile)};
    if (a == b) for_each_diagonal_tile(rows, tile);
    for (int64_t j = a == b ? rows.end : B.begin; j < B.end; j += blocks.tile)
      tile(rows, Range{j, std::min(B.end, j + blocks.tile)});
  }
}

// Game `n` of a round-robin tournament of `count` blocks, in which a block plays itself in round 0
// and every other block once in the rounds after it.
struct Game {
  int64_t a, b, round;
  bool bye;  // b does not exist: an odd number of blocks
};
inline Game game(int64_t n, int64_t count) {
  if (n < count) return {n, n, 0, false};
  const int64_t players = count + count % 2, games = players / 2;
  const int64_t round = (n - count) / games, k = (n - count) % games;
  const int64_t a = (round + k) % (players - 1);
  const int64_t b = k == 0 ? players - 1 : (round - k + players - 1) % (players - 1);
  return {std::min(a, b), std::max(a, b), round + 1, std::max(a, b) >= count};
}
inline int64_t game_count(int64_t count) {
  const int64_t players = count + count % 2;
  return count + players / 2 * (players - 1);
}

// Calls tile(Range i, Range j, thread) for every tile with i <= j. Threads take the games in order
// and wait only for the two blocks that they need, never for a whole round.
template <class Tile>
void for_each_pair(const Blocks& blocks, Tile&& tile) {
  const int64_t count = blocks.count(), games = game_count(count);
  std::atomic<int64_t> next{0};
  std::vector<std::atomic<int64_t>> finished(count);  // rounds that a block has behind it
  at::parallel_for(0, blocks.threads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t thread = begin; thread < end; ++thread) {
      for (int64_t n; (n = next.fetch_add(1, std::memory_order_relaxed)) < games;) {
        const Game now = game(n, count);
        const auto wait = [&](int64_t block) {
          while (finished[block].load(std::memory_order_acquire) < now.round)
            std::this_thread::yield();
        };
        wait(now.a);
        if (!now.bye) {
          wait(now.b);
          for_each_tile(blocks, now.a, now.b, [&](Range i, Range j) { tile(i, j, thread); });
        }
        finished[now.a].store(now.round + 1, std::memory_order_release);
        if (!now.bye && now.b != now.a)
          finished[now.b].store(now.round + 1, std::memory_order_release);
      }
    }
  });
}

}  // namespace sslops
