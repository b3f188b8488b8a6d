// Products with AVX-512's dot products of bfloat16 pairs.
#ifdef __x86_64__
#define SSLOPS_DOT
#include "tiles/cross_bf16.h"

namespace sslops {
const CrossKernels& cross_dot() { return cross_kernels<EngineBf16>(); }
}  // namespace sslops
#endif
