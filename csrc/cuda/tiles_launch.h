// Chooses the instance of the tile kernel; one file for each dtype instantiates it.
#pragma once
#include "host.h"
#include "tiles.h"

namespace sslops {

// Columns a tile may have at most: the accumulators of a warp's 16 rows have to stay in registers.
template <class T>
constexpr int kMostColumns = sizeof(T) == 2 ? 256 : 128;

template <class T>
int tile_width(const Device& device, int64_t D) {
  return choose_width(D, sizeof(T), kMostColumns<T>, device.shared_limit());
}

template <class T>
void launch_tiles(const Device& device, Pass pass, int width, dim3 grid, const TileProblem& p);

template <class T, int W>
void launch_width(const Device& device, Pass pass, dim3 grid, const TileProblem& p) {
  const int64_t shared = tile_bytes(p.width, W, sizeof(T));
  if (pass == Pass::kStats)
    device.launch(tile_kernel<T, W, Pass::kStats>, grid, kThreads, shared, p);
  else if (pass == Pass::kSingle)
    device.launch(tile_kernel<T, W, Pass::kSingle>, grid, kThreads, shared, p);
  else
    device.launch(tile_kernel<T, W, Pass::kGradient>, grid, kThreads, shared, p);
}

template <class T>
void launch_tiles(const Device& device, Pass pass, int width, dim3 grid, const TileProblem& p) {
  constexpr int kMost = kMostColumns<T>;
  if (width == kMost)
    launch_width<T, kMost>(device, pass, grid, p);
  else if (width == kMost / 2)
    launch_width<T, kMost / 2>(device, pass, grid, p);
  else
    launch_width<T, kMost / 4>(device, pass, grid, p);
}

extern template void launch_tiles<BFloat16>(const Device&, Pass, int, dim3, const TileProblem&);
extern template void launch_tiles<Half>(const Device&, Pass, int, dim3, const TileProblem&);
extern template void launch_tiles<float>(const Device&, Pass, int, dim3, const TileProblem&);

}  // namespace sslops
