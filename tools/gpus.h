// The GPUs of this machine as the rest of tools sees them; tests put others in their place.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "core/base/error.h"
#include "core/interface/backend.h"
#include "core/interface/device_slots.h"
#include "core/model/model_config.h"
#include "core/runtime/workspace.h"
#include "gpu/factory.h"

namespace stoker::tools {

// What the backend of one device is made for.
struct GpuBackendNeed {
  CudaBackendOptions options;
  WorkspaceLimits limits;  // the largest steps
  int context_tokens = 0;
};

class Gpus {
 public:
  virtual ~Gpus() = default;

  // In the order that --devices counts.
  virtual std::vector<GpuInfo> list() const = 0;
  // Memory that a GPU has free, or why it cannot be used. Opens it: ask it of those in question.
  virtual Result<std::int64_t> open(int gpu) const = 0;
  // One sentence: what is there or what is missing.
  virtual std::string support() const = 0;

  // Device memory that a backend takes for itself.
  virtual std::int64_t scratch_bytes(const ModelConfig& config,
                                     const GpuBackendNeed& need) const = 0;
  // Takes that memory now.
  virtual Result<std::unique_ptr<Backend>> make_backend(const ModelConfig& config,
                                                        const GpuBackendNeed& need) const = 0;
  virtual Result<std::unique_ptr<DeviceSlots>> make_slots(
      const CudaSlotsOptions& options) const = 0;
  // Lets every GPU copy from `memory` at the speed of its bus until the last owner of what is
  // returned is gone, which must be before the memory is. `gpu` is one in use; no other is opened.
  // Thread-safe.
  virtual Result<std::shared_ptr<void>> pin(std::span<std::byte> memory, int gpu) const = 0;
  // Lets GPUs copy from each other directly, where the machine can.
  virtual Status connect(std::span<const int> gpus) const = 0;
};

const Gpus& cuda_gpus();

}  // namespace stoker::tools
