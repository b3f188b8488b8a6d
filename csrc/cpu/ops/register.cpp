// Registers the ops of the CPU with the dispatcher. Its headers take longer to compile than an op,
// so the ops are in files without them.
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/library.h>

#include "ops/ops.h"

namespace sslops {
namespace {

bool is_double(const at::Tensor& tensor) { return tensor.scalar_type() == at::kDouble; }

// The kernels leave float64 to plain PyTorch: the op `name` if any of the arguments `inputs` is.
template <auto Kernel, int... inputs>
struct OrReference;

template <class Result, class... Args, Result (*Kernel)(Args...), int... inputs>
struct OrReference<Kernel, inputs...> {
  const char* name;
  Result operator()(Args... args) const {
    const auto all = std::tie(args...);
    if (!(is_double(std::get<inputs>(all)) || ...)) return Kernel(args...);
    static const auto reference =
        c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Result(Args...)>();
    return reference.call(args...);
  }
};

}  // namespace
}  // namespace sslops

TORCH_LIBRARY_IMPL(sslops, CPU, m) {
  using namespace sslops;
  m.impl("nt_xent_fwd", OrReference<&nt_xent_fwd, 0>{"sslops::nt_xent_fwd_reference"});
  m.impl("nt_xent_bwd", OrReference<&nt_xent_bwd, 1>{"sslops::nt_xent_bwd_reference"});
  m.impl("sup_con_fwd", OrReference<&sup_con_fwd, 0>{"sslops::sup_con_fwd_reference"});
  m.impl("sup_con_bwd", OrReference<&sup_con_bwd, 1>{"sslops::sup_con_bwd_reference"});
  m.impl("sigmoid_loss_fwd",
         OrReference<&sigmoid_loss_fwd, 0>{"sslops::sigmoid_loss_fwd_reference"});
  m.impl("ema_update_", &ema_update_);
  m.impl("enqueue_", OrReference<&enqueue_, 0, 2>{"sslops::enqueue__reference"});
}
