// Products of bfloat16 rows with AVX-512's dot products of pairs.
#ifdef __x86_64__
#define SSLOPS_DOT
#include "isa/bf16_kernels.h"

namespace sslops {
const IsaKernels& avx512_bf16_kernels() { return bf16_kernels(); }
}  // namespace sslops
#endif
