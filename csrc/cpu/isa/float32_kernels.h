// The kernels on float32 vectors. Included after the pragma that sets the instruction set.
#pragma once
#include "isa/kernels.h"
#include "ops/ema_span.h"
#include "ops/queue_rows.h"
#include "tiles/cross_kernels.h"

namespace sslops {
namespace {

template <class Tiles>
const IsaKernels& float32_kernels() {
  constexpr int W = Tiles::V::width;
  static const IsaKernels all{{Tiles::forward, Tiles::backward},
                              cross_kernels<EngineF32<Tiles>>(),
                              nullptr,
                              Ema<W>::kernels(),
                              QueueRows<W>::store_row};
  return all;
}

}  // namespace
}  // namespace sslops
