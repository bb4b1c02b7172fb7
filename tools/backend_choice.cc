#include "tools/backend_choice.h"

#include <utility>
#include <vector>

#include "cpu/factory.h"
#include "cpu/isa.h"
#include "cpu/reference_backend.h"
#include "cpu/topology.h"

namespace stoker::tools {
namespace {

Result<DType> parse_activations(const std::string& value) {
  if (value == "bf16") return DType::kBf16;
  if (value == "f32") return DType::kF32;
  return make_error(ErrorCode::kUsage, "--activations {}: bf16 or f32", value);
}

Result<KvFormat> parse_kv_cache(const std::string& value) {
  for (const KvFormat format : {KvFormat::kBf16, KvFormat::kF32, KvFormat::kFp8}) {
    if (value == kv_format_name(format)) return format;
  }
  return make_error(ErrorCode::kUsage, "--kv-cache {}: bf16, f32 or fp8", value);
}

Result<BackendChoice> make_cpu(const ModelFlags& flags, BackendTypes types) {
  CpuBackendOptions options;
  options.activations = types.activations;
  options.kv_format = types.kv;
  ASSIGN_OR_RETURN(options.isa, parse_isa(flags.isa));
  const std::vector<int> cpus = Topology::detect().pin_order(flags.threads);
  BackendChoice choice;
  choice.team = std::make_unique<Team>(static_cast<int>(cpus.size()), cpus);
  options.team = choice.team.get();
  ASSIGN_OR_RETURN(choice.backend, make_cpu_backend(options));
  return choice;
}

}  // namespace

Result<BackendTypes> backend_types(const ModelFlags& flags) {
  const bool reference = flags.backend == "reference";
  for (const auto& [flag, value] :
       {std::pair("activations", flags.activations), {"kv-cache", flags.kv_cache}}) {
    if (reference && !value.empty() && value != "f32") {
      return make_error(ErrorCode::kUsage,
                        "--backend reference computes in f32 only; leave --{} {} out", flag, value);
    }
  }
  const auto or_default = [&](const std::string& value) {
    return !value.empty() ? value : reference ? "f32" : "bf16";
  };
  BackendTypes types;
  ASSIGN_OR_RETURN(types.activations, parse_activations(or_default(flags.activations)));
  ASSIGN_OR_RETURN(types.kv, parse_kv_cache(or_default(flags.kv_cache)));
  return types;
}

Result<BackendChoice> make_host_backend(const ModelFlags& flags) {
  ASSIGN_OR_RETURN(const BackendTypes types, backend_types(flags));
  if (flags.backend != "reference") return make_cpu(flags, types);
  BackendChoice choice;
  choice.backend = std::make_unique<ReferenceBackend>();
  return choice;
}

}  // namespace stoker::tools
