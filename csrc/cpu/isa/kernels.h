// The kernels of one instruction set; a file of this folder compiles them all for one.
#pragma once
#include "ops/ema.h"
#include "ops/queue.h"
#include "tiles/cross.h"
#include "tiles/tiles.h"

namespace sslops {

struct IsaKernels {
  TileKernels tiles;
  CrossKernels cross;
  PackPanel pack;  // null in the sets on float32 rows
  // Null in the sets on bfloat16 rows, which have no other kernels.
  EmaKernels ema;
  StoreRow (*store_row)(Stored in, Stored out);
};

const IsaKernels& portable_kernels();
const IsaKernels& avx2_kernels();  // these four on x86-64 only
const IsaKernels& avx512_kernels();
const IsaKernels& avx512_bf16_kernels();
const IsaKernels& amx_kernels();

}  // namespace sslops
