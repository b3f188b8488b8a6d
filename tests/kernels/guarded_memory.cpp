// Memory that tells: an allocator of CPU tensors for the tests (tests/_guarded.py).
//
// A tensor lies between two pages that nothing may touch: an access there is a segmentation fault.
// What is left of its own pages, itself before it is written, and itself once it is freed is 0xff,
// which is NaN in every floating dtype and -1 in every integer one, for as long as kKept says: who
// reads it computes NaN, who writes there is told.
#include <c10/core/CPUAllocator.h>
#include <sys/mman.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <mutex>
#include <new>
#include <unordered_map>

namespace {

constexpr size_t kPage = 4096, kAligned = 64;
constexpr size_t kKept = 512, kKeptBytes = size_t{64} << 20;

// [page that is closed][0xff][the tensor][0xff up to kAligned][page that is closed]
struct Block {
  unsigned char *first, *data, *end, *last;  // first and last: of the pages in between
  size_t bytes;
};

size_t round_up(size_t bytes, size_t to) { return (bytes + to - 1) / to * to; }

Block* make(size_t bytes) {
  const size_t size = round_up(bytes, kPage);
  void* const raw = mmap(nullptr, size + 2 * kPage, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (raw == MAP_FAILED) throw std::bad_alloc();
  auto* const first = static_cast<unsigned char*>(raw) + kPage;
  if (size > 0) mprotect(first, size, PROT_READ | PROT_WRITE);
  std::memset(first, 0xff, size);
  unsigned char* const data = first + size - round_up(bytes, kAligned);
  return new Block{first, data, data + bytes, first + size, bytes};
}

void check(const unsigned char* from, const unsigned char* to, const char* what) {
  for (; from != to; ++from) {
    if (*from == 0xff) continue;
    std::fprintf(stderr, "guarded memory: something wrote %s a tensor\n", what);
    std::abort();
  }
}

std::mutex mutex;
std::unordered_map<void*, Block*> blocks;  // by data: torch has no other context
std::deque<Block*> kept;
size_t kept_bytes = 0;

void give_back(void* data) {
  const std::lock_guard<std::mutex> lock(mutex);
  const auto found = blocks.find(data);
  if (found == blocks.end()) return;  // nullptr
  Block* const block = found->second;
  blocks.erase(found);
  check(block->first, block->data, "before the beginning of");
  check(block->end, block->last, "behind the end of");
  std::memset(block->data, 0xff, block->bytes);
  kept.push_back(block);
  kept_bytes += block->bytes;
  while (kept.size() > kKept || kept_bytes > kKeptBytes) {
    Block* const oldest = kept.front();
    kept.pop_front();
    kept_bytes -= oldest->bytes;
    check(oldest->data, oldest->end, "into the freed memory of");
    munmap(oldest->first - kPage, static_cast<size_t>(oldest->last - oldest->first) + 2 * kPage);
    delete oldest;
  }
}

class Guarded final : public c10::Allocator {
 public:
  c10::DataPtr allocate(size_t bytes) override {
    Block* const block = make(bytes);
    const std::lock_guard<std::mutex> lock(mutex);
    blocks[block->data] = block;
    return {block->data, block->data, &give_back, c10::Device(c10::DeviceType::CPU)};
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
