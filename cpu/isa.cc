#include "cpu/isa.h"

#include <fmt/format.h>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace stoker {
namespace {

constexpr Isa kAll[] = {Isa::kScalar, Isa::kAvx2, Isa::kAvx512, Isa::kAmx};

#if defined(__x86_64__)

struct Registers {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
};

Registers cpuid(unsigned leaf, unsigned subleaf) {
  Registers r;
  __get_cpuid_count(leaf, subleaf, &r.eax, &r.ebx, &r.ecx, &r.edx);  // leaves zeros if absent
  return r;
}

bool has(unsigned word, std::initializer_list<int> bits) {
  for (const int bit : bits) {
    if ((word >> bit & 1u) == 0) return false;
  }
  return true;
}

// Register state that the operating system saves and restores.
unsigned enabled_state() {
  if (!has(cpuid(1, 0).ecx, {27})) return 0;  // OSXSAVE
  unsigned eax = 0, edx = 0;
  __asm__ volatile("xgetbv" : "=a"(eax), "=d"(edx) : "c"(0));
  return eax;
}

bool detect(Isa isa) {
  const Registers one = cpuid(1, 0);
  const Registers seven = cpuid(7, 0);
  const unsigned state = enabled_state();
  switch (isa) {
    case Isa::kScalar:
      return true;
    case Isa::kAvx2:
      return has(state, {1, 2}) && has(one.ecx, {12, 28, 29}) && has(seven.ebx, {5});
    case Isa::kAvx512:  // F, DQ, BW, VL; VBMI
      return detect(Isa::kAvx2) && has(state, {5, 6, 7}) && has(seven.ebx, {16, 17, 30, 31}) &&
             has(seven.ecx, {1});
    case Isa::kAmx:  // BF16, TILE, INT8
      return detect(Isa::kAvx512) && has(state, {17, 18}) && has(seven.edx, {22, 24, 25});
  }
  return false;
}

#else

bool detect(Isa isa) { return isa == Isa::kScalar; }

#endif

}  // namespace

std::string_view isa_name(Isa isa) {
  switch (isa) {
    case Isa::kScalar:
      return "scalar";
    case Isa::kAvx2:
      return "avx2";
    case Isa::kAvx512:
      return "avx512";
    case Isa::kAmx:
      return "amx";
  }
  return "?";
}

bool isa_available(Isa isa) { return detect(isa); }

std::vector<Isa> available_isas() {
  std::vector<Isa> found;
  for (const Isa isa : kAll) {
    if (detect(isa)) found.push_back(isa);
  }
  return found;
}

Isa best_isa() { return available_isas().back(); }

Result<Isa> parse_isa(std::string_view name) {
  if (name == "auto") return best_isa();
  for (const Isa isa : kAll) {
    if (name != isa_name(isa)) continue;
    if (detect(isa)) return isa;
    return make_error(ErrorCode::kUnsupported,
                      "--isa {}: this machine does not have it; the best it has is {}", name,
                      isa_name(best_isa()));
  }
  return make_error(ErrorCode::kInvalidArgument,
                    "--isa {}: unknown, expected auto, scalar, avx2, avx512 or amx", name);
}

}  // namespace stoker
