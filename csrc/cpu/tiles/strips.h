// Runs two functions on every tile of a rectangle, in parallel: the first on all tiles of a strip
// of rows, then, when all of these are done, the second. No two calls ever share a row or a column,
// and columns are always updated from the first strip to the last.
#pragma once
#include <optional>

#include "tiles/squares.h"

namespace sslops {

// Strips of `size` rows, a multiple of kPanel; `tiles` of columns each.
struct Strips {
  int64_t rows, cols, size, count, tiles, threads;
  Range row_range(int64_t n) const { return {n * size, std::min(rows, (n + 1) * size)}; }
  Range col_range(int64_t n) const { return {n * kTile, std::min(cols, (n + 1) * kTile)}; }
};

// Strips whose tiles have `room` floats in all threads together; null if they would be so flat that
// columns are read more often than that is worth.
inline std::optional<Strips> make_strips(int64_t rows, int64_t cols, int64_t D, int64_t room) {
  constexpr int64_t kFlat = kTile / 2;
  const int64_t threads = threads_for(rows * cols * D);
  const int64_t tiles = (cols + kTile - 1) / kTile;
  const int64_t fit = room / (threads * tiles * kTileStride) / kPanel * kPanel;
  if (fit < std::min(kFlat, rows)) return std::nullopt;
  const int64_t most = std::min(fit, kTile);
  // as many strips for each thread, of sizes as equal as panels allow
  const int64_t shares = threads * ((rows + threads * most - 1) / (threads * most));
  const int64_t size = std::min(most, round_to_panel((rows + shares - 1) / shares));
  const int64_t count = (rows + size - 1) / size;
  return Strips{rows, cols, size, count, tiles, std::min(threads, count)};
}

// Calls gather(i, j, thread, tile) for the tiles 0 .. of a strip, then between(i, thread), then
// spread(i, j, thread, tile). Strips are begun in order, and wait only for earlier ones.
template <class Gather, class Between, class Spread>
void for_each_strip(const Strips& s, Gather&& gather, Between&& between, Spread&& spread) {
  std::atomic<int64_t> next{0};
  std::vector<std::atomic<int64_t>> done(s.tiles);  // strips that are behind these columns
  at::parallel_for(0, s.threads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t thread = begin; thread < end; ++thread)
      for (int64_t n; (n = next.fetch_add(1, std::memory_order_relaxed)) < s.count;) {
        const Range i = s.row_range(n);
        for (int64_t t = 0; t < s.tiles; ++t) gather(i, s.col_range(t), thread, t);
        between(i, thread);
        for (int64_t t = 0; t < s.tiles; ++t) {
          while (done[t].load(std::memory_order_acquire) < n) std::this_thread::yield();
          spread(i, s.col_range(t), thread, t);
          done[t].store(n + 1, std::memory_order_release);
        }
      }
  });
}

}  // namespace sslops
