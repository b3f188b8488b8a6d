// Products on the matrix unit.
#ifdef __x86_64__
#include "tiles/cross_bf16.h"

namespace sslops {
const CrossKernels& cross_amx() { return cross_kernels<EngineBf16>(); }
}  // namespace sslops
#endif
