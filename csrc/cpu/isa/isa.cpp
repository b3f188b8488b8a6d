#include "isa/isa.h"

#include <atomic>
#include <stdexcept>

#if defined(__x86_64__) && defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace sslops {
namespace {

// A process must ask the operating system for AMX once; a refusal means no AMX.
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

Isa best_isa() {
#ifdef __x86_64__
  __builtin_cpu_init();
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
  if (avx512 && __builtin_cpu_supports("avx512bf16"))
    return amx_usable() ? Isa::kAmx : Isa::kAvx512Bf16;
  if (avx512) return Isa::kAvx512;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return Isa::kAvx2;
#endif
  return Isa::kPortable;
}

Isa machine_isa() {
  static const Isa best = best_isa();
  return best;
}

std::atomic<Isa>& chosen() {
  static std::atomic<Isa> value{machine_isa()};
  return value;
}

}  // namespace

Isa isa() { return chosen().load(std::memory_order_relaxed); }

std::string isa_name(Isa isa) {
  static const char* names[] = {"portable", "avx2", "avx512", "avx512_bf16", "amx"};
  return names[static_cast<int>(isa)];
}

std::vector<std::string> isas() {
  std::vector<std::string> names;
  for (int n = 0; n <= static_cast<int>(machine_isa()); ++n)
    names.push_back(isa_name(static_cast<Isa>(n)));
  return names;
}

void set_isa(const std::string& name) {
  const auto names = isas();
  if (name == "auto") {
    chosen() = machine_isa();
    return;
  }
  for (size_t n = 0; n < names.size(); ++n) {
    if (names[n] == name) {
      chosen() = static_cast<Isa>(n);
      return;
    }
  }
  std::string choices = "auto";
  for (const auto& each : names) choices += ", " + each;
  throw std::invalid_argument("set_level: level must be one of " + choices + ", got " + name);
}

const IsaKernels& kernels([[maybe_unused]] bool bf16) {
#ifdef __x86_64__
  if (bf16) return isa() == Isa::kAmx ? amx_kernels() : avx512_bf16_kernels();
  if (isa() >= Isa::kAvx512) return avx512_kernels();
  if (isa() == Isa::kAvx2) return avx2_kernels();
#endif
  return portable_kernels();
}

}  // namespace sslops
