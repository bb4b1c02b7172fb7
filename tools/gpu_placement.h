// From --devices and --vram to what goes onto which GPU, refused with the numbers before anything
// is loaded; and from that to who computes a model.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "core/base/clock.h"
#include "core/base/error.h"
#include "core/interface/expert_source.h"
#include "core/runtime/engine.h"
#include "core/runtime/runner.h"
#include "prefetch/expert_manager.h"
#include "prefetch/tiered_experts.h"
#include "storage/model_source.h"
#include "tools/backend_choice.h"
#include "tools/device_plan.h"
#include "tools/gpus.h"
#include "tools/model_flags.h"

namespace stoker::tools {

// Whether --backend lets GPUs compute, where there are any.
bool may_use_gpus(const ModelFlags& flags);

// That what the flags say of GPUs goes together, and with --backend; else kUsage. Asks no machine.
Status check_gpu_flags(const ModelFlags& flags);

// What a model takes of devices. Weights are counted in the form that
// products read them in, each in memory of its own.
DeviceNeed device_need(const ModelConfig& config, const storage::ModelSource& source,
                       BackendTypes types, const RunnerOptions& options);

// The devices of the flags and what goes onto each; empty if none are to be used. --backend cuda,
// and auto with a flag about GPUs, ask for them: it is an error if there are none or if they do not
// hold the model's dense part. Otherwise auto takes those that hold it, and says so if they do not.
// GPUs that cannot be used, or do not hold their share, are an error if --devices names them, else
// they are left out with a notice. Requires: check_gpu_flags().
Result<std::optional<DevicePlan>> place_on_gpus(const ModelFlags& flags, const ModelConfig& config,
                                                const storage::ModelSource& source,
                                                BackendTypes types, const RunnerOptions& options,
                                                const Gpus& gpus);

// A sentence per device, for the person who watches.
std::vector<std::string> describe(const DevicePlan& plan, const Gpus& gpus);

struct GpuExtras {
  bool measure_busy = false;  // Backend::busy_us() says something
  bool fast_experts = false;  // CudaBackendOptions::fast_experts
};

// A backend per device of the plan, in its order.
Result<EngineBackends> make_gpu_backends(const DevicePlan& plan, const ModelConfig& config,
                                         BackendTypes types, const RunnerOptions& options,
                                         const GpuExtras& extras, const Gpus& gpus);

// Who computes which expert: `ram` below the devices' slots, under the costs of this machine, which
// are measured here. The engine's backends are those of make_gpu_backends(), and after them, if
// there is one, the host's. `source` and `clock` outlive the result.
Result<std::unique_ptr<TieredExperts>> make_tiers(const DevicePlan& plan, const Engine& engine,
                                                  std::unique_ptr<ExpertManager> ram,
                                                  const ExpertSource& source,
                                                  const ModelFlags& flags, const Gpus& gpus,
                                                  const Clock& clock);

}  // namespace stoker::tools
