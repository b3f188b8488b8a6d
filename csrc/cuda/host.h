// The host side of every op: the stable ABI's tensors, the device's limits, launches.
// Only torch/csrc/stable and torch/headeronly: one binary runs with every torch since 2.10
// (docs/adr/0005-cuda-stable-abi.md).
#pragma once
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#ifndef SSLOPS_EMULATE_CUDA
#include <dlfcn.h>
#endif

#include <optional>
#include <tuple>
#include <utility>
#include <vector>

#include "machine.h"
#include "numbers.h"

#define SSLOPS_LIBRARY(m) SSLOPS_LIBRARY_OF(SSLOPS_DISPATCH_KEY, m)
#define SSLOPS_LIBRARY_OF(key, m) STABLE_TORCH_LIBRARY_IMPL(sslops, key, m)

namespace sslops {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline Kind kind_of(const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float:
      return Kind::kFloat;
    case ScalarType::BFloat16:
      return Kind::kBFloat16;
    case ScalarType::Half:
      return Kind::kHalf;
    case ScalarType::Double:
      return Kind::kDouble;
    default:
      return Kind::kOther;
  }
}

inline Tensor new_tensor(const Tensor& like, std::vector<int64_t> shape, ScalarType type) {
  return torch::stable::new_empty(like, shape, type);
}

inline Tensor in_order(const Tensor& tensor) {
  return tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor);
}
inline std::optional<Tensor> in_order(const std::optional<Tensor>& tensor) {
  return tensor ? std::optional<Tensor>(in_order(*tensor)) : std::nullopt;
}

template <class T>
const T* pointer(const Tensor& tensor) {
  return static_cast<const T*>(tensor.const_data_ptr());
}
template <class T>
const T* pointer(const std::optional<Tensor>& tensor) {
  return tensor ? pointer<T>(*tensor) : nullptr;
}
template <class T>
T* mutable_pointer(const Tensor& tensor) {
  return static_cast<T*>(tensor.mutable_data_ptr());
}

// Device, stream and limits of one call.
class Device {
 public:
  explicit Device(const Tensor& tensor);

  int64_t processors() const { return processors_; }
  int64_t shared_limit() const { return shared_limit_; }

  // Run `kernel` on blocks of `threads` threads with `shared` bytes of dynamic shared memory.
  template <class... Params, class... Args>
  void launch(void (*kernel)(Params...), dim3 grid, int threads, int64_t shared,
              Args&&... args) const;

 private:
#ifndef SSLOPS_EMULATE_CUDA
  torch::stable::accelerator::DeviceGuard guard_;
  cudaStream_t stream_ = nullptr;
#endif
  int64_t processors_ = 0, shared_limit_ = 0;
};

#ifdef SSLOPS_EMULATE_CUDA
inline Device::Device(const Tensor&) : processors_(3), shared_limit_(99 << 10) {}

template <class... Params, class... Args>
void Device::launch(void (*kernel)(Params...), dim3 grid, int threads, int64_t shared,
                    Args&&... args) const {
  emulation::run(grid, threads, shared, [&] { kernel(std::forward<Args>(args)...); });
}
#else
inline void check_cuda(cudaError_t code, const char* what) {
  STD_TORCH_CHECK(code == cudaSuccess, "sslops: ", what, ": ", cudaGetErrorString(code));
}

// Looked up when it is first needed, not linked: then this module is built against, and loads with,
// a torch without CUDA as well.
inline cudaStream_t current_stream(int device) {
  using Get = AOTITorchError (*)(int32_t, void**);
  static const Get get = [] {
    void* const library = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD);
    void* const symbol =
        library == nullptr ? nullptr : dlsym(library, "aoti_torch_get_current_cuda_stream");
    return reinterpret_cast<Get>(symbol);
  }();
  STD_TORCH_CHECK(get != nullptr, "sslops: this torch was built without CUDA");
  void* stream = nullptr;
  STD_TORCH_CHECK(get(device, &stream) == AOTI_TORCH_SUCCESS, "sslops: no current stream");
  return static_cast<cudaStream_t>(stream);
}

inline Device::Device(const Tensor& tensor)
    : guard_(tensor.get_device_index()), stream_(current_stream(tensor.get_device_index())) {
  const int device = tensor.get_device_index();
  check_cuda(cudaSetDevice(device), "device");  // also for the runtime that is linked in here
  int processors = 0, shared = 0;
  check_cuda(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device),
             "number of multiprocessors");
  check_cuda(cudaDeviceGetAttribute(&shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, device),
             "size of shared memory");
  processors_ = processors;
  shared_limit_ = shared;
}

template <class... Params, class... Args>
void Device::launch(void (*kernel)(Params...), dim3 grid, int threads, int64_t shared,
                    Args&&... args) const {
  if (shared > (48 << 10))
    check_cuda(
        cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                             cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared)),
        "shared memory of a kernel");
  std::tuple<Params...> values(std::forward<Args>(args)...);
  std::apply(
      [&](auto&... each) {
        void* list[] = {&each...};
        check_cuda(cudaLaunchKernel(reinterpret_cast<const void*>(kernel), grid, dim3(threads),
                                    list, static_cast<size_t>(shared), stream_),
                   "launch of a kernel");
      },
      values);
}
#endif

}  // namespace sslops
