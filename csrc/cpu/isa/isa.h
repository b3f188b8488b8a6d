// The instruction set that the CPU kernels use: the machine's best, unless a test chooses another.
#pragma once
#include <string>
#include <vector>

#include "isa/kernels.h"

namespace sslops {

enum class Isa { kPortable, kAvx2, kAvx512, kAvx512Bf16, kAmx };

Isa isa();                              // in use
std::string isa_name(Isa isa);          // portable, avx2, avx512, avx512_bf16, amx
std::vector<std::string> isas();        // what this machine can run, slowest first
void set_isa(const std::string& name);  // "auto" for the best; throws if it cannot run here

// The kernels of that instruction set; `bf16`: for rows in the layouts of bfloat16 products, from
// kAvx512Bf16 on.
const IsaKernels& kernels(bool bf16 = false);
inline const TileKernels& tiles(bool bf16) { return kernels(bf16).tiles; }
inline const CrossKernels& cross(bool bf16) { return kernels(bf16).cross; }

}  // namespace sslops
