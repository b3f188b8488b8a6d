#include "isa/isa.h"

#include <c10/util/Exception.h>

#include <atomic>

#if defined(__x86_64__) && defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace sslops {
namespace {

// AMX state must be asked of the kernel once a process; a refusal means no AMX.
bool amx_usable() {
#ifdef SSLOPS_EMULATE_AMX
  return true;
#elif defined(__x86_64__) && defined(__linux__)
  constexpr unsigned kTileBit = 1u << 24, kBf16Bit = 1u << 22;
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  unsigned a, b, c, d;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
  if ((d & kTileBit) == 0 || (d & kBf16Bit) == 0) return false;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

Level best_level() {
#ifdef __x86_64__
  __builtin_cpu_init();
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
  if (avx512 && __builtin_cpu_supports("avx512bf16"))
    return amx_usable() ? Level::kAmx : Level::kBf16;
  if (avx512) return Level::kAvx512;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return Level::kAvx2;
#endif
  return Level::kPortable;
}

Level machine_level() {
  static const Level best = best_level();
  return best;
}

std::atomic<Level>& chosen() {
  static std::atomic<Level> value{machine_level()};
  return value;
}

}  // namespace

Level level() { return chosen().load(std::memory_order_relaxed); }

std::string level_name(Level level) {
  static const char* names[] = {"portable", "avx2", "avx512", "avx512_bf16", "amx"};
  return names[static_cast<int>(level)];
}

std::vector<std::string> levels() {
  std::vector<std::string> names;
  for (int n = 0; n <= static_cast<int>(machine_level()); ++n)
    names.push_back(level_name(static_cast<Level>(n)));
  return names;
}

void set_level(const std::string& name) {
  const auto names = levels();
  if (name == "auto") {
    chosen() = machine_level();
    return;
  }
  for (size_t n = 0; n < names.size(); ++n) {
    if (names[n] == name) {
      chosen() = static_cast<Level>(n);
      return;
    }
  }
  std::string known = "auto";
  for (const auto& each : names) known += ", " + each;
  TORCH_CHECK_VALUE(false, "set_level: level must be one of ", known, ", got ", name);
}

const TileKernels& tiles([[maybe_unused]] bool bf16) {
#ifdef __x86_64__
  if (bf16) return level() == Level::kAmx ? tiles_amx() : tiles_dot();
  if (level() >= Level::kAvx512) return tiles_avx512();
  if (level() == Level::kAvx2) return tiles_avx2();
#endif
  return tiles_portable();
}

const CrossKernels& cross([[maybe_unused]] bool bf16) {
#ifdef __x86_64__
  if (bf16) return level() == Level::kAmx ? cross_amx() : cross_dot();
  if (level() >= Level::kAvx512) return cross_avx512();
  if (level() == Level::kAvx2) return cross_avx2();
#endif
  return cross_portable();
}

}  // namespace sslops
