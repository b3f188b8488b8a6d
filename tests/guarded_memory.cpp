// Memory that tells: an allocator of CPU tensors for the tests (tests/_guarded.py).
//
// A block starts as bytes 0xff, which are NaN in every floating dtype and -1 in every integer one;
// so are the guards in front of it and behind it, and the block itself once it is freed. It stays
// so for the next kKept frees: a kernel that reads what was freed, never written or out of bounds
// computes NaN, and one that writes there is named.
#include <c10/core/CPUAllocator.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <mutex>

namespace {

constexpr size_t kGuard = 4096;
constexpr size_t kKept = 512, kKeptBytes = size_t{64} << 20;

// [its size, guard][bytes, then guard up to a page][guard]
size_t room(size_t bytes) { return (bytes + kGuard - 1) / kGuard * kGuard + 2 * kGuard; }

size_t size_of(const unsigned char* data) {
  size_t bytes;
  std::memcpy(&bytes, data - kGuard, sizeof(bytes));
  return bytes;
}

void check(const unsigned char* from, size_t bytes, const char* what) {
  for (size_t n = 0; n < bytes; ++n) {
    if (from[n] == 0xff) continue;
    std::fprintf(stderr, "guarded memory: something wrote %s a tensor\n", what);
    std::abort();
  }
}

void give_back(void* pointer) {
  auto* const data = static_cast<unsigned char*>(pointer);
  if (data == nullptr) return;
  const size_t bytes = size_of(data);
  check(data - kGuard + sizeof(bytes), kGuard - sizeof(bytes), "before the beginning of");
  check(data + bytes, room(bytes) - kGuard - bytes, "behind the end of");
  std::memset(data, 0xff, bytes);
  static std::mutex mutex;
  static std::deque<unsigned char*> kept;
  static size_t kept_bytes = 0;
  const std::lock_guard<std::mutex> lock(mutex);
  kept.push_back(data);
  kept_bytes += bytes;
  while (kept.size() > kKept || kept_bytes > kKeptBytes) {
    unsigned char* const oldest = kept.front();
    kept.pop_front();
    kept_bytes -= size_of(oldest);
    check(oldest, size_of(oldest), "into the freed memory of");
    std::free(oldest - kGuard);
  }
}

class Guarded final : public c10::Allocator {
 public:
  c10::DataPtr allocate(size_t bytes) override {
    void* const raw = std::aligned_alloc(kGuard, room(bytes));
    if (raw == nullptr) throw std::bad_alloc();
    std::memset(raw, 0xff, room(bytes));
    std::memcpy(raw, &bytes, sizeof(bytes));
    void* const data = static_cast<unsigned char*>(raw) + kGuard;
    return {data, data, &give_back, c10::Device(c10::DeviceType::CPU)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &give_back; }
  void copy_data(void* to, const void* from, size_t bytes) const override {
    default_copy_data(to, from, bytes);
  }
};

}  // namespace

extern "C" void sslops_guard(int on) {
  static Guarded guarded;  // for good: tensors outlive the tests that made them
  c10::SetCPUAllocator(on != 0 ? &guarded : c10::GetDefaultCPUAllocator());
}
