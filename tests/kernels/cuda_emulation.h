// A GPU of the mind for csrc/cuda: the same kernels and the same host code, compiled by the host's
// compiler and registered for CPU tensors (tests/test_cuda_emulated.py).
//
// Every thread of a block is a coroutine. Barriers and warp instructions wait until all have
// arrived, and then see what the others brought; between barriers one warp runs to the end before
// the next begins, in a different order for every block. Shared memory starts as NaN, and an
// asynchronous copy writes NaN until it is waited for. Warp instructions follow the PTX ISA's
// fragment tables. What this cannot show: speed, the hardware's own rounding, races within one
// segment.
#pragma once
#include <setjmp.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <memory>
#include <stdexcept>
#include <vector>

#define SSLOPS_DISPATCH_KEY CPU
#define __global__ inline
#define __device__
#define __launch_bounds__(...)

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
inline dim3 threadIdx, blockIdx, gridDim;

namespace sslops {

using BFloat16 = c10::BFloat16;
using Half = c10::Half;

namespace emulation {

constexpr size_t kStack = 128 << 10;
constexpr int kGuard = 4096;  // bytes behind the shared memory that nothing may write

struct Copy {
  void* to;
  const void* from;  // nullptr: zeros
  int group;
};

struct Lane {
  ucontext_t start;
  jmp_buf here;
  bool started = false, done = false;
  int warp_turn = 0, groups = 0;
  std::deque<Copy> copies;
  std::unique_ptr<char[]> stack{new char[kStack]};
};

struct Warp {
  int arrived[2] = {0, 0};
  uint64_t turns = 0;         // completed
  uint32_t words[2][32][12];  // what each lane brought to this and the last instruction
};

struct Block {
  std::vector<Lane> lanes;
  std::vector<Warp> warps;
  std::vector<unsigned char> shared;
  size_t shared_bytes = 0;
  int arrived = 0, alive = 0;
  uint64_t barriers = 0, progress = 0;
  bool any = false, last_any = false;
  int current = 0;
  jmp_buf scheduler;
  std::function<void()> body;

  unsigned char* base() {
    unsigned char* const raw = shared.data();
    return raw + (128 - reinterpret_cast<uintptr_t>(raw) % 128) % 128;
  }
};

inline Block* block = nullptr;

inline Lane& lane() { return block->lanes[block->current]; }

inline void yield() {
  if (_setjmp(lane().here) == 0) _longjmp(block->scheduler, 1);
}

inline void enter() {
  block->body();
  lane().done = true;
  ++block->progress;
  --block->alive;
  _longjmp(block->scheduler, 1);
}

inline void fail(const char* what) {
  std::fprintf(stderr, "cuda_emulation: %s\n", what);
  std::abort();
}

inline void resume(int n) {
  block->current = n;
  threadIdx = dim3(static_cast<unsigned>(n));
  if (_setjmp(block->scheduler) != 0) return;
  Lane& each = lane();
  if (each.started) _longjmp(each.here, 1);
  each.started = true;
  getcontext(&each.start);
  each.start.uc_stack.ss_sp = each.stack.get();
  each.start.uc_stack.ss_size = kStack;
  each.start.uc_link = nullptr;
  makecontext(&each.start, reinterpret_cast<void (*)()>(&enter), 0);
  setcontext(&each.start);
}

inline void run_block(Block& b, int threads, unsigned turn) {
  for (Lane& each : b.lanes) {
    each.started = each.done = false;
    each.warp_turn = each.groups = 0;
    each.copies.clear();
  }
  for (Warp& each : b.warps) each = Warp();
  std::memset(b.shared.data(), 0xff, b.shared.size());
  b.arrived = 0;
  b.alive = threads;
  // one warp runs as far as it can before another does: what a barrier should have kept apart shows
  const int warps = std::max(1, threads / 32);
  while (b.alive > 0) {
    turn = turn * 1664525u + 1013904223u;
    const uint64_t before_all = b.progress;
    for (int w = 0; w < warps; ++w) {
      const int warp = static_cast<int>((turn >> 8) + static_cast<unsigned>(w)) % warps;
      uint64_t before;
      do {
        before = b.progress;
        for (int k = 0; k < 32 && k < threads; ++k) {
          const int n = 32 * warp + ((turn >> 30 & 1) != 0 ? std::min(31, threads - 1) - k : k);
          if (!b.lanes[n].done) resume(n);
        }
      } while (b.progress != before);
    }
    if (b.progress == before_all) fail("threads wait for each other");
  }
  for (int n = 0; n < kGuard; ++n)
    if (b.base()[b.shared_bytes + n] != 0xff) fail("a kernel wrote behind its shared memory");
}

inline void run(dim3 grid, int threads, int64_t shared, std::function<void()> body) {
  Block b;
  b.lanes = std::vector<Lane>(threads);
  b.warps.resize(threads / 32);
  b.shared_bytes = static_cast<size_t>(shared);
  b.shared.resize(b.shared_bytes + kGuard + 128);
  b.body = std::move(body);
  block = &b;
  gridDim = grid;
  for (unsigned z = 0; z < grid.z; ++z)
    for (unsigned y = 0; y < grid.y; ++y)
      for (unsigned x = 0; x < grid.x; ++x) {
        blockIdx = dim3(x, y, z);
        run_block(b, threads, x + 31 * y + 1009 * z);
      }
  block = nullptr;
}

// All lanes of the warp bring `words`; returns what lane n brought in [n].
inline const uint32_t (*exchange(const uint32_t* words, int count))[12] {
  Warp& warp = block->warps[block->current / 32];
  const int side = lane().warp_turn++ & 1;
  const uint64_t mine = static_cast<uint64_t>(lane().warp_turn);
  std::memcpy(warp.words[side][block->current % 32], words, 4 * count);
  if (++warp.arrived[side] == 32) {
    warp.arrived[side] = 0;
    ++warp.turns;
  }
  while (warp.turns < mine) yield();
  ++block->progress;
  return warp.words[side];
}

inline float half_of(uint32_t word, int n, BFloat16) {
  return BFloat16(static_cast<unsigned short>(word >> 16 * n), BFloat16::from_bits());
}
inline float half_of(uint32_t word, int n, Half) {
  return Half(static_cast<unsigned short>(word >> 16 * n), Half::from_bits());
}

inline const unsigned char* row_of(uint32_t low, uint32_t high) {
  return reinterpret_cast<const unsigned char*>(static_cast<uint64_t>(high) << 32 | low);
}

}  // namespace emulation

inline unsigned char* shared_memory() { return emulation::block->base(); }

inline bool barrier_any(bool value) {
  auto& b = *emulation::block;
  const uint64_t before = b.barriers;
  b.any |= value;
  if (++b.arrived == b.alive) {
    b.last_any = b.any;
    b.any = false;
    b.arrived = 0;
    ++b.barriers;
  }
  while (b.barriers == before) emulation::yield();
  ++b.progress;
  return b.last_any;  // the next barrier completes only after all have read this
}
inline void barrier() { barrier_any(false); }

inline float shuffle_xor(float value, int mask) {
  uint32_t word;
  std::memcpy(&word, &value, 4);
  const auto all = emulation::exchange(&word, 1);
  std::memcpy(&value, &all[(emulation::block->current % 32) ^ mask][0], 4);
  return value;
}

inline float fast_exp2(float x) {
  const float y = std::exp2(x);
  return std::fabs(y) < 0x1p-126f ? 0.0f : y;
}

// Row r of matrix j is at the address that lane 8 j + r brings.
inline void ldmatrix_of(uint32_t (&r)[4], const void* row, bool transposed) {
  const uint64_t address = reinterpret_cast<uint64_t>(row);
  if (address % 16 != 0) emulation::fail("ldmatrix: a row must start at a multiple of 16 bytes");
  const uint32_t words[2] = {static_cast<uint32_t>(address), static_cast<uint32_t>(address >> 32)};
  const auto all = emulation::exchange(words, 2);
  const int lane = emulation::block->current % 32;
  for (int j = 0; j < 4; ++j) {
    uint16_t two[2];
    for (int n = 0; n < 2; ++n) {
      const int major = lane / 4, minor = 2 * (lane % 4) + n;
      const uint32_t* at = all[8 * j + (transposed ? minor : major)];
      std::memcpy(&two[n], emulation::row_of(at[0], at[1]) + 2 * (transposed ? major : minor), 2);
    }
    r[j] = two[0] | static_cast<uint32_t>(two[1]) << 16;
  }
}
inline void ldmatrix(uint32_t (&r)[4], const void* row) { ldmatrix_of(r, row, false); }
inline void ldmatrix_transposed(uint32_t (&r)[4], const void* row) { ldmatrix_of(r, row, true); }

template <class T>
inline void mma(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  const uint32_t words[6] = {a[0], a[1], a[2], a[3], b0, b1};
  const auto all = emulation::exchange(words, 6);
  const int lane = emulation::block->current % 32;
  for (int n = 0; n < 4; ++n) {
    const int row = lane / 4 + n / 2 * 8, column = lane % 4 * 2 + n % 2;
    for (int k = 0; k < 16; ++k) {
      const uint32_t x = all[row % 8 * 4 + k % 8 / 2][row / 8 + k / 8 * 2];
      const uint32_t y = all[column * 4 + k % 8 / 2][4 + k / 8];
      c[n] += emulation::half_of(x, k % 2, T()) * emulation::half_of(y, k % 2, T());
    }
  }
}

inline void mma_tf32(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  const uint32_t words[6] = {a[0], a[1], a[2], a[3], b0, b1};
  const auto all = emulation::exchange(words, 6);
  const int lane = emulation::block->current % 32;
  for (int n = 0; n < 4; ++n) {
    const int row = lane / 4 + n / 2 * 8, column = lane % 4 * 2 + n % 2;
    for (int k = 0; k < 8; ++k) {
      uint32_t x = all[row % 8 * 4 + k % 4][row / 8 + k / 4 * 2] & 0xffffe000u;  // what it reads
      uint32_t y = all[column * 4 + k % 4][4 + k / 4] & 0xffffe000u;
      float fx, fy;
      std::memcpy(&fx, &x, 4);
      std::memcpy(&fy, &y, 4);
      c[n] += fx * fy;
    }
  }
}

template <class T>
inline uint32_t pack(float low, float high) {
  return T(low).x | static_cast<uint32_t>(T(high).x) << 16;
}

inline void copy_async(void* shared, const void* global, bool valid) {
  if (reinterpret_cast<uintptr_t>(shared) % 16 != 0 || reinterpret_cast<uintptr_t>(global) % 16)
    emulation::fail("cp.async: both addresses must be multiples of 16 bytes");
  std::memset(shared, 0xff, 16);
  emulation::lane().copies.push_back({shared, valid ? global : nullptr, emulation::lane().groups});
}
inline void commit_copies() { ++emulation::lane().groups; }
template <int N>
inline void wait_copies() {
  auto& lane = emulation::lane();
  while (!lane.copies.empty() && lane.copies.front().group < lane.groups - N) {
    const auto copy = lane.copies.front();
    if (copy.from == nullptr)
      std::memset(copy.to, 0, 16);
    else
      std::memcpy(copy.to, copy.from, 16);
    lane.copies.pop_front();
  }
}

}  // namespace sslops
