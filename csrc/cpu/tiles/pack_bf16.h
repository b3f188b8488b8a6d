// Packing of rows for bfloat16 products.
#pragma once
#include <cstdint>

namespace sslops {

// Rounds kPanel rows [kPanel, ld] float32 to bfloat16 and writes their part of the three layouts
// of TileProblem.
void pack_panel_bf16(const float* rows, int64_t ld, int64_t ld16, int64_t panel, uint16_t* x16,
                     uint16_t* panels16, uint16_t* pairs16);

}  // namespace sslops
