// Instruction sets that the kernels are compiled for, and which of them this machine can run.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>
#include <vector>

#include "core/base/error.h"

namespace stoker {

// In ascending order of preference.
//   avx2:   AVX2, FMA, F16C                       (Haswell, Zen and later)
//   avx512: AVX-512 F, BW, DQ, VL, VBMI           (Ice Lake, Zen 4 and later)
//   amx:    avx512 and AMX-TILE, AMX-BF16, AMX-INT8 (Sapphire Rapids and later). Detected and
//           named; our own kernels run their avx512 form on it for now, only oneDNN uses its tiles.
enum class Isa : std::uint8_t { kScalar, kAvx2, kAvx512, kAmx };

std::string_view isa_name(Isa isa);

// What CPUID offers and the operating system saves (XCR0).
bool isa_available(Isa isa);
std::vector<Isa> available_isas();  // ascending; kScalar is always there
Isa best_isa();

// "auto" is the best available one. An error if the name is unknown or the machine lacks it.
Result<Isa> parse_isa(std::string_view name);

}  // namespace stoker
