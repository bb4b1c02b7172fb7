// How a CPU backend is made.
#pragma once

#include <memory>

#include "core/base/team.h"
#include "core/interface/backend.h"
#include "cpu/isa.h"

namespace stoker {

struct CpuBackendOptions {
  DType activations = DType::kBf16;  // kBf16 or kF32
  KvFormat kv_format = KvFormat::kBf16;
  Isa isa = Isa::kScalar;  // best_isa(), or what parse_isa() gave
  Team* team = nullptr;    // outlives the backend
};

Result<std::unique_ptr<Backend>> make_cpu_backend(const CpuBackendOptions& options);

}  // namespace stoker
