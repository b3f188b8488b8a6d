// Runs a function on every tile of a rectangle, in parallel, without two calls ever sharing a row
// or a column, and with an order of updates that does not depend on which thread does what.
#pragma once
#include <ATen/Parallel.h>

#include <algorithm>
#include <atomic>
#include <thread>
#include <vector>

#include "tiles/threads.h"
#include "tiles/tiles.h"

namespace sslops {

// Rows and columns cut into equally many strips (some may be empty).
struct Squares {
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

inline int64_t round_to_panel(int64_t n) { return (n + kPanel - 1) / kPanel * kPanel; }

// Two strips a thread; small problems stay on one thread.
inline Squares make_squares(int64_t rows, int64_t cols, int64_t D) {
  const int64_t threads = threads_for(rows * cols * D);
  int64_t count = threads == 1 ? 1 : 2 * threads;
  count = std::max<int64_t>(1, std::min({count, rows / kPanel, cols / kPanel}));
  const auto strip = [&](int64_t n) { return round_to_panel((n + count - 1) / count); };
  return {rows, cols, strip(rows), strip(cols), count, std::min(threads, count)};
}

template <class Tile>
void for_each_tile(Range rows, Range cols, Tile&& tile) {
  for (int64_t i = rows.begin; i < rows.end; i += kTile)
    for (int64_t j = cols.begin; j < cols.end; j += kTile)
      tile(Range{i, std::min(rows.end, i + kTile)}, Range{j, std::min(cols.end, j + kTile)});
}

// Calls tile(Range i, Range j, thread, square) for every tile. In round r, strip a of the rows
// meets strip (a + r) mod count of the columns; threads take the squares in order and wait only for
// the two strips that they need.
template <class Tile>
void for_each_square_tile(const Squares& s, Tile&& tile) {
  std::atomic<int64_t> next{0};
  std::vector<std::atomic<int64_t>> row_done(s.count), col_done(s.count);  // rounds behind them
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

}  // namespace sslops
