// Everything that runs on tiles of two sets of rows, for one engine (cross_tiles.h).
#pragma once
#include "tiles/cross_attend.h"
#include "tiles/cross_joint.h"
#include "tiles/cross_sigmoid.h"

namespace sslops {
namespace {

template <class E>
const CrossKernels& cross_kernels() {
  static const CrossKernels all{Cross<E>::forward,        Cross<E>::backward,
                                CrossSigmoid<E>::sigmoid, CrossAttend<E>::attend,
                                CrossJoint<E>::row_pass,  CrossJoint<E>::column_pass};
  return all;
}

}  // namespace
}  // namespace sslops
