// The instruction-set level that the CPU kernels run at: found once, can be forced for tests.
#pragma once
#include <string>
#include <vector>

#include "tiles/cross.h"
#include "tiles/tiles.h"

namespace sslops {

enum class Level { kPortable, kAvx2, kAvx512, kBf16, kAmx };

Level level();                            // in use
std::string level_name(Level level);      // portable, avx2, avx512, avx512_bf16, amx
std::vector<std::string> levels();        // what this machine can run, slowest first
void set_level(const std::string& name);  // "auto" for the best; throws if it cannot run here

// The tiles of that level, for rows in float32 or in the layouts of bfloat16 products.
const TileKernels& tiles(bool bf16);
const CrossKernels& cross(bool bf16);

}  // namespace sslops
