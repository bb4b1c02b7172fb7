#include "tools/gpus.h"

namespace stoker::tools {
namespace {

class CudaGpus final : public Gpus {
 public:
  std::vector<GpuInfo> list() const override { return list_gpus(); }
  Result<std::int64_t> open(int gpu) const override { return open_gpu(gpu); }
  std::string support() const override { return cuda_support(); }
  std::int64_t scratch_bytes(const ModelConfig& config, const GpuBackendNeed& need) const override {
    return scratch(config, need).bytes();
  }
  Result<std::unique_ptr<Backend>> make_backend(const ModelConfig& config,
                                                const GpuBackendNeed& need) const override {
    CudaBackendOptions options = need.options;
    options.scratch = scratch(config, need);
    return make_cuda_backend(options);
  }
  Result<std::unique_ptr<DeviceSlots>> make_slots(const CudaSlotsOptions& options) const override {
    return make_cuda_slots(options);
  }
  Result<std::shared_ptr<void>> pin(std::span<std::byte> memory, int gpu) const override {
    ASSIGN_OR_RETURN(PinnedHostMemory pinned, pin_host_memory(memory, gpu));
    return std::shared_ptr<void>(std::make_shared<PinnedHostMemory>(std::move(pinned)));
  }
  Status connect(std::span<const int> gpus) const override { return enable_peer_access(gpus); }

 private:
  static CudaScratch scratch(const ModelConfig& config, const GpuBackendNeed& need) {
    return cuda_scratch(config, need.limits, need.context_tokens, need.options);
  }
};

}  // namespace

const Gpus& cuda_gpus() {
  static const CudaGpus gpus;
  return gpus;
}

}  // namespace stoker::tools
