// Products of bfloat16 rows on the matrix unit.
#ifdef __x86_64__
#include "isa/bf16_kernels.h"

namespace sslops {
const IsaKernels& amx_kernels() { return bf16_kernels(); }
}  // namespace sslops
#endif
