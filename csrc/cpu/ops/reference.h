// The ops that plain PyTorch implements, for the dtypes that the kernels leave out (float64).
#pragma once
#include <ATen/core/dispatch/Dispatcher.h>

namespace sslops {

template <class F>
c10::TypedOperatorHandle<F> reference(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<F>();
}

}  // namespace sslops
