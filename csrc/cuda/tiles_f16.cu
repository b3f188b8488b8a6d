#include "tiles_launch.h"

namespace sslops {
template void launch_tiles<Half>(const Device&, Pass, int, dim3, const TileProblem&);
}  // namespace sslops
