// The factory of a build without CUDA.
#include "gpu/factory.h"

namespace stoker {
namespace {

Error missing() {
  return make_error(ErrorCode::kUnsupported,
                    "the CUDA backend is missing: this program was built without CUDA (configure "
                    "with -DSTOKER_CUDA=ON and the CUDA toolkit, or use --backend cpu)");
}

}  // namespace

Result<std::unique_ptr<Backend>> make_cuda_backend(const CudaBackendOptions&) { return missing(); }

CudaScratch cuda_scratch(const ModelConfig&, WorkspaceLimits, int, const CudaBackendOptions&) {
  return {};
}

CudaScratch cuda_scratch_held(const Backend&) { return {}; }

int cuda_graphs_held(const Backend&) { return 0; }

Status enable_peer_access(std::span<const int>) { return missing(); }

Result<std::unique_ptr<DeviceSlots>> make_cuda_slots(const CudaSlotsOptions&) { return missing(); }

Result<PinnedHostMemory> pin_host_memory(std::span<std::byte>, int) { return missing(); }

std::vector<GpuInfo> list_gpus() { return {}; }

Result<std::int64_t> open_gpu(int) { return missing(); }

std::string cuda_support() { return "built without CUDA"; }

}  // namespace stoker
