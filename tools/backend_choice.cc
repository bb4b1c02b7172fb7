#include "tools/backend_choice.h"

#include <utility>
#include <vector>

#include "cpu/factory.h"
#include "cpu/isa.h"
#include "cpu/reference_backend.h"
#include "cpu/topology.h"
#include "gpu/factory.h"

namespace stoker::tools {
namespace {

Result<DType> parse_float_type(std::string_view flag, const std::string& value,
                               DType default_type) {
  if (value.empty()) return default_type;
  if (value == "bf16") return DType::kBf16;
  if (value == "f32") return DType::kF32;
  return make_error(ErrorCode::kUnsupported, "--{} {} is not supported yet; bf16 and f32 are", flag,
                    value);
}

Result<BackendChoice> make_cpu(const ModelFlags& flags, BackendTypes types) {
  CpuBackendOptions options;
  options.activations = types.activations;
  options.kv_dtype = types.kv;
  ASSIGN_OR_RETURN(options.isa, parse_isa(flags.isa));
  const std::vector<int> cpus = Topology::detect().pin_order(flags.threads);
  BackendChoice choice;
  choice.team = std::make_unique<Team>(static_cast<int>(cpus.size()), cpus);
  options.team = choice.team.get();
  ASSIGN_OR_RETURN(choice.backend, make_cpu_backend(options));
  return choice;
}

Result<BackendChoice> make_cuda(BackendTypes types) {
  CudaBackendOptions options;
  options.activations = types.activations;
  options.kv_cache = types.kv;
  BackendChoice choice;
  ASSIGN_OR_RETURN(choice.backend, make_cuda_backend(options));
  return choice;
}

}  // namespace

Result<BackendTypes> backend_types(const ModelFlags& flags) {
  const bool reference = flags.backend == "reference";
  for (const auto& [flag, value] :
       {std::pair("activations", flags.activations), {"kv-cache", flags.kv_cache}}) {
    if (reference && !value.empty() && value != "f32") {
      return make_error(ErrorCode::kInvalidArgument,
                        "--backend reference computes in f32 only; leave --{} {} out", flag, value);
    }
  }
  const DType otherwise = reference ? DType::kF32 : DType::kBf16;
  BackendTypes types;
  ASSIGN_OR_RETURN(types.activations,
                   parse_float_type("activations", flags.activations, otherwise));
  ASSIGN_OR_RETURN(types.kv, parse_float_type("kv-cache", flags.kv_cache, otherwise));
  return types;
}

Result<BackendChoice> make_backend(const ModelFlags& flags) {
  ASSIGN_OR_RETURN(const BackendTypes types, backend_types(flags));
  if (flags.backend == "cuda") return make_cuda(types);
  if (flags.backend != "reference") return make_cpu(flags, types);
  BackendChoice choice;
  choice.backend = std::make_unique<ReferenceBackend>();
  return choice;
}

}  // namespace stoker::tools
