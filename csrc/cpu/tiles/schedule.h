// The orders in which threads compute the tiles of a problem: every unordered pair of blocks, the
// Latin square of a rectangle, strips of its rows. No two calls ever share a row or a column that
// they update, and the order of the updates of each does not depend on which thread does what.
#pragma once
#include <ATen/Parallel.h>

#include <algorithm>
#include <atomic>
#include <optional>
#include <thread>
#include <utility>
#include <vector>

#include "tiles/threads.h"
#include "tiles/tiles.h"

namespace sslops {

inline int64_t round_to_panel(int64_t n) { return (n + kPanel - 1) / kPanel * kPanel; }

// The tiles of a rectangle, at most kTile long.
template <class Tile>
void for_each_tile(Range rows, Range cols, Tile&& tile) {
  for (int64_t i = rows.begin; i < rows.end; i += kTile)
    for (int64_t j = cols.begin; j < cols.end; j += kTile)
      tile(Range{i, std::min(rows.end, i + kTile)}, Range{j, std::min(cols.end, j + kTile)});
}

// ------------------------------------------------- one set of rows: every unordered pair of blocks

struct BlockPairs {
  int64_t rows;     // a multiple of kPanel
  int64_t block;    // rows of a block, a multiple of kPanel
  int64_t tile;     // rows of a tile, at most kTile
  int64_t threads;  // that work on them
  int64_t count() const { return (rows + block - 1) / block; }
  Range range(int64_t n) const { return {n * block, std::min(rows, (n + 1) * block)}; }
};

// Four blocks a thread give each round two pairs a thread; small problems stay on one thread.
inline BlockPairs block_pairs(int64_t rows, int64_t D) {
  const int64_t threads = threads_for(rows * rows * D);
  const int64_t parts = threads == 1 ? 1 : 4 * threads;
  int64_t block = round_to_panel((rows + parts - 1) / parts);
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
void for_each_tile(const BlockPairs& blocks, int64_t a, int64_t b, Tile&& tile) {
  const Range A = blocks.range(a), B = blocks.range(b);
  for (int64_t i = A.begin; i < A.end; i += blocks.tile) {
    const Range rows{i, std::min(A.end, i + blocks.tile)};
    if (a == b) for_each_diagonal_tile(rows, tile);
    for (int64_t j = a == b ? rows.end : B.begin; j < B.end; j += blocks.tile)
      tile(rows, Range{j, std::min(B.end, j + blocks.tile)});
  }
}

// Pair `n` of `count` blocks, by the circle method of round-robin schedules: round 0 pairs each
// block with itself, and each later round has every block in one pair.
struct BlockPair {
  int64_t a, b, round;
  bool no_partner;  // b does not exist: the number of blocks is odd
};
inline BlockPair block_pair(int64_t n, int64_t count) {
  if (n < count) return {n, n, 0, false};
  const int64_t even = count + count % 2, pairs = even / 2;
  const int64_t round = (n - count) / pairs, k = (n - count) % pairs;
  const int64_t a = (round + k) % (even - 1);
  const int64_t b = k == 0 ? even - 1 : (round - k + even - 1) % (even - 1);
  return {std::min(a, b), std::max(a, b), round + 1, std::max(a, b) >= count};
}
inline int64_t pair_count(int64_t count) {
  const int64_t even = count + count % 2;
  return count + even / 2 * (even - 1);
}

// Calls tile(Range i, Range j, thread) for every tile with i <= j. Threads take the pairs in order
// and wait only for the two blocks that they need, never for a whole round.
template <class Tile>
void for_each_tile(const BlockPairs& blocks, Tile&& tile) {
  const int64_t count = blocks.count(), pairs = pair_count(count);
  std::atomic<int64_t> next{0};
  std::vector<std::atomic<int64_t>> finished(count);  // rounds that a block has completed
  at::parallel_for(0, blocks.threads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t thread = begin; thread < end; ++thread) {
      for (int64_t n; (n = next.fetch_add(1, std::memory_order_relaxed)) < pairs;) {
        const BlockPair pair = block_pair(n, count);
        const auto wait = [&](int64_t block) {
          while (finished[block].load(std::memory_order_acquire) < pair.round)
            std::this_thread::yield();
        };
        wait(pair.a);
        if (!pair.no_partner) {
          wait(pair.b);
          for_each_tile(blocks, pair.a, pair.b, [&](Range i, Range j) { tile(i, j, thread); });
        }
        finished[pair.a].store(pair.round + 1, std::memory_order_release);
        if (!pair.no_partner && pair.b != pair.a)
          finished[pair.b].store(pair.round + 1, std::memory_order_release);
      }
    }
  });
}

// ------------------------------------------------------------- two sets of rows: a Latin square

// Rows and columns cut into equally many strips (some may be empty).
struct LatinSquare {
  int64_t rows, cols;            // multiples of kPanel
  int64_t row_strip, col_strip;  // likewise
  int64_t count, threads;
  Range row_range(int64_t n) const { return range(n, row_strip, rows); }
  Range col_range(int64_t n) const { return range(n, col_strip, cols); }

 private:
  static Range range(int64_t n, int64_t strip, int64_t end) {
    return {std::min(end, n * strip), std::min(end, (n + 1) * strip)};
  }
};

// Two strips a thread; small problems stay on one thread.
inline LatinSquare latin_square(int64_t rows, int64_t cols, int64_t D) {
  const int64_t threads = threads_for(rows * cols * D);
  int64_t count = threads == 1 ? 1 : 2 * threads;
  count = std::max<int64_t>(1, std::min({count, rows / kPanel, cols / kPanel}));
  const auto strip = [&](int64_t n) { return round_to_panel((n + count - 1) / count); };
  return {rows, cols, strip(rows), strip(cols), count, std::min(threads, count)};
}

// Calls tile(Range i, Range j, thread, cell) for every tile. In round r, strip a of the rows meets
// strip (a + r) mod count of the columns; threads take the cells in order and wait only for the
// two strips that they need.
template <class Tile>
void for_each_tile(const LatinSquare& s, Tile&& tile) {
  std::atomic<int64_t> next{0};
  std::vector<std::atomic<int64_t>> row_done(s.count), col_done(s.count);  // rounds completed
  at::parallel_for(0, s.threads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t thread = begin; thread < end; ++thread) {
      for (int64_t n; (n = next.fetch_add(1, std::memory_order_relaxed)) < s.count * s.count;) {
        const int64_t round = n / s.count, a = n % s.count, b = (a + round) % s.count;
        const auto wait = [&](const std::atomic<int64_t>& done) {
          while (done.load(std::memory_order_acquire) < round) std::this_thread::yield();
        };
        wait(row_done[a]);
        wait(col_done[b]);
        for_each_tile(s.row_range(a), s.col_range(b),
                      [&](Range i, Range j) { tile(i, j, thread, n); });
        row_done[a].store(round + 1, std::memory_order_release);
        col_done[b].store(round + 1, std::memory_order_release);
      }
    }
  });
}

// ------------------------------------- two sets of rows, two passes over each strip of the rows

// Strips of `size` rows, a multiple of kPanel; `tiles` of columns each.
struct RowStrips {
  int64_t rows, cols, size, count, tiles, threads;
  Range row_range(int64_t n) const { return {n * size, std::min(rows, (n + 1) * size)}; }
  Range col_range(int64_t n) const { return {n * kTile, std::min(cols, (n + 1) * kTile)}; }
};

// Strips whose tiles take at most `room` floats in all threads together; null if they would be so
// flat that columns are read more often than that is worth.
inline std::optional<RowStrips> row_strips(int64_t rows, int64_t cols, int64_t D, int64_t room) {
  constexpr int64_t kFlat = kTile / 2;
  const int64_t threads = threads_for(rows * cols * D);
  const int64_t tiles = (cols + kTile - 1) / kTile;
  const int64_t fit = room / (threads * tiles * kTileStride) / kPanel * kPanel;
  if (fit < std::min(kFlat, rows)) return std::nullopt;
  const int64_t most = std::min(fit, kTile);
  // as many strips for each thread, of sizes as equal as panels allow
  const int64_t parts = threads * ((rows + threads * most - 1) / (threads * most));
  const int64_t size = std::min(most, round_to_panel((rows + parts - 1) / parts));
  const int64_t count = (rows + size - 1) / size;
  return RowStrips{rows, cols, size, count, tiles, std::min(threads, count)};
}

// Calls first(i, j, thread, tile) for the tiles 0 .. of a strip, then between(i, thread), then
// second(i, j, thread, tile). Strips are begun in order and wait only for earlier ones, so that
// columns are updated from the first strip to the last.
template <class First, class Between, class Second>
void for_each_tile(const RowStrips& s, First&& first, Between&& between, Second&& second) {
  std::atomic<int64_t> next{0};
  std::vector<std::atomic<int64_t>> done(s.tiles);  // strips that have updated these columns
  at::parallel_for(0, s.threads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t thread = begin; thread < end; ++thread)
      for (int64_t n; (n = next.fetch_add(1, std::memory_order_relaxed)) < s.count;) {
        const Range i = s.row_range(n);
        for (int64_t t = 0; t < s.tiles; ++t) first(i, s.col_range(t), thread, t);
        between(i, thread);
        for (int64_t t = 0; t < s.tiles; ++t) {
          while (done[t].load(std::memory_order_acquire) < n) std::this_thread::yield();
          second(i, s.col_range(t), thread, t);
          done[t].store(n + 1, std::memory_order_release);
        }
      }
  });
}

}  // namespace sslops
