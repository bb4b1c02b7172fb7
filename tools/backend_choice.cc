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

Result<BackendChoice> make_reference(const ModelFlags& flags) {
  for (const auto& [flag, value] :
       {std::pair("activations", flags.activations), {"kv-cache", flags.kv_cache}}) {
    if (!value.empty() && value != "f32") {
      return make_error(ErrorCode::kInvalidArgument,
                        "--backend reference computes in f32 only; leave --{} {} out", flag, value);
    }
  }
  BackendChoice choice;
  choice.backend = std::make_unique<ReferenceBackend>();
  return choice;
}

Result<BackendChoice> make_cpu(const ModelFlags& flags) {
  CpuBackendOptions options;
  ASSIGN_OR_RETURN(options.activations,
                   parse_float_type("activations", flags.activations, DType::kBf16));
  ASSIGN_OR_RETURN(options.kv_dtype, parse_float_type("kv-cache", flags.kv_cache, DType::kBf16));
  ASSIGN_OR_RETURN(options.isa, parse_isa(flags.isa));
  const std::vector<int> cpus = Topology::detect().pin_order(flags.threads);
  BackendChoice choice;
  choice.team = std::make_unique<Team>(static_cast<int>(cpus.size()), cpus);
  options.team = choice.team.get();
  ASSIGN_OR_RETURN(choice.backend, make_cpu_backend(options));
  return choice;
}

Result<BackendChoice> make_cuda(const ModelFlags& flags) {
  CudaBackendOptions options;
  ASSIGN_OR_RETURN(options.activations,
                   parse_float_type("activations", flags.activations, DType::kBf16));
  ASSIGN_OR_RETURN(options.kv_cache, parse_float_type("kv-cache", flags.kv_cache, DType::kBf16));
  BackendChoice choice;
  ASSIGN_OR_RETURN(choice.backend, make_cuda_backend(options));
  return choice;
}

}  // namespace

Result<BackendChoice> make_backend(const ModelFlags& flags) {
  if (flags.backend == "reference") return make_reference(flags);
  if (flags.backend == "cuda") return make_cuda(flags);
  return make_cpu(flags);
}

}  // namespace stoker::tools
