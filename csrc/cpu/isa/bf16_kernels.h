// The kernels on bfloat16 rows: products on the matrix unit or, where the including file defines
// SSLOPS_DOT, with AVX-512's dot products.
#pragma once
#include "isa/kernels.h"
#include "tiles/bf16.h"  // first of these: it sets the instruction set
#include "tiles/cross_bf16.h"
#include "tiles/pack_bf16.h"
#include "tiles/tiles_bf16.h"

namespace sslops {
namespace {

inline const IsaKernels& bf16_kernels() {
  static const IsaKernels all{{TilesBf16::forward, TilesBf16::backward},
                              cross_kernels<EngineBf16>(),
                              pack_panel,
                              {},
                              nullptr};
  return all;
}

}  // namespace
}  // namespace sslops
