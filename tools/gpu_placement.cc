#include "tools/gpu_placement.h"

#include <fmt/format.h>

#include <algorithm>
#include <span>
#include <utility>

#include "core/model/tensor_table.h"
#include "core/runtime/measure_costs.h"
#include "quant/tile16.h"
#include "tools/notice.h"

namespace stoker::tools {
namespace {

double gib(std::int64_t bytes) { return static_cast<double>(bytes) / (1 << 30); }

// Of a tensor on a device.
std::int64_t device_bytes(const TensorSpec& spec, const storage::ModelSource& source) {
  const storage::StoredTensor* stored = source.find(spec.name);
  if (stored == nullptr) return 0;  // may be absent
  const quant::Tile16 tile{spec.rows, spec.cols, {storage::quant_format_of(stored->type)}};
  if (spec.is_vector()) {
    return device_allocation_bytes(spec.rows * spec.cols *
                                   dtype_bytes(DType::kF32));  // adopt_vector()
  }
  return device_allocation_bytes(tile.payload_bytes()) +
         device_allocation_bytes(tile.scale_bytes());
}

GpuBackendNeed backend_need(int gpu, int logical, BackendTypes types,
                            const RunnerOptions& options) {
  GpuBackendNeed need;
  need.options.device = gpu;
  need.options.logical = logical;
  need.options.activations = types.activations;
  need.options.kv_format = types.kv;
  need.limits = Runner::limits_needed(options);
  need.context_tokens = options.context_tokens;
  return need;
}

Result<TierRule> parse_rule(const std::string& value) {
  if (value == "auto") return TierRule::kSchedule;
  if (value == "host") return TierRule::kHost;
  if (value == "device") return TierRule::kDevice;
  if (value == "alternate") return TierRule::kAlternate;
  return make_error(ErrorCode::kUsage, "--expert-site {}: auto, host, device, alternate", value);
}

// The first flag that says something of GPUs; null if none does.
const char* flag_about_gpus(const ModelFlags& flags) {
  if (!flags.devices.empty()) return "devices";
  if (!flags.vram.empty()) return "vram";
  if (flags.expert_site != "auto") return "expert-site";
  if (flags.expert_arithmetic != "defined") return "expert-arithmetic";
  return nullptr;
}

// Memory that a GPU has free, or why it cannot be used.
Result<std::int64_t> free_bytes_of(int gpu, std::span<const GpuInfo> list, const Gpus& gpus) {
  RETURN_IF_ERROR(list[static_cast<std::size_t>(gpu)].usable());
  return gpus.open(gpu);
}

// Those of --devices. No other is opened.
Result<std::vector<DeviceRoom>> named_rooms(const std::vector<int>& devices,
                                            std::span<const GpuInfo> list, const Gpus& gpus) {
  std::vector<DeviceRoom> rooms;
  for (const int gpu : devices) {
    if (gpu < 0 || gpu >= static_cast<int>(list.size())) {
      return make_error(ErrorCode::kNotFound,
                        "--devices: there is no GPU {}; this machine has {}, the first is 0", gpu,
                        list.size());
    }
    const Result<std::int64_t> free_bytes = free_bytes_of(gpu, list, gpus);
    if (!free_bytes.ok()) {
      return make_error(free_bytes.error().code(),
                        "--devices: GPU {} cannot be used: {}; name another one, or take --backend "
                        "cpu",
                        gpu, free_bytes.error().message());
    }
    rooms.push_back({gpu, *free_bytes, 0});
  }
  return rooms;
}

// All that can be used; it is said which cannot.
Result<std::vector<DeviceRoom>> usable_rooms(std::span<const GpuInfo> list, const Gpus& gpus) {
  std::vector<DeviceRoom> rooms;
  std::vector<std::string> unusable;
  for (int gpu = 0; gpu < static_cast<int>(list.size()); ++gpu) {
    if (static_cast<int>(rooms.size()) == kMaxScheduledDevices) break;
    const Result<std::int64_t> free_bytes = free_bytes_of(gpu, list, gpus);
    if (free_bytes.ok()) {
      rooms.push_back({gpu, *free_bytes, 0});
    } else {
      unusable.push_back(
          fmt::format("GPU {} cannot be used: {}", gpu, free_bytes.error().message()));
    }
  }
  if (rooms.empty()) {
    return make_error(ErrorCode::kUnsupported, "{}; --backend cpu needs none",
                      fmt::join(unusable, "; "));
  }
  for (const std::string& reason : unusable) say_notice(reason);
  return rooms;
}

}  // namespace

bool may_use_gpus(const ModelFlags& flags) {
  return flags.backend == "cuda" || flags.backend == "auto";
}

Status check_gpu_flags(const ModelFlags& flags) {
  const char* const flag = flag_about_gpus(flags);
  if (flag != nullptr && !may_use_gpus(flags)) {
    return make_error(ErrorCode::kUsage, "--{} is for --backend cuda", flag);
  }
  if (flags.devices.size() > kMaxScheduledDevices) {
    return make_error(ErrorCode::kUsage, "--devices names {}; {} are the most",
                      flags.devices.size(), kMaxScheduledDevices);
  }
  if (flags.expert_arithmetic == "fast" && flags.activations == "f32") {
    return make_error(ErrorCode::kUsage,
                      "--expert-arithmetic fast is for BF16 activations; leave it or --activations "
                      "f32 out");
  }
  if (const auto rule = parse_rule(flags.expert_site); !rule.ok()) return rule.error();
  return {};
}

DeviceNeed device_need(const ModelConfig& config, const storage::ModelSource& source,
                       BackendTypes types, const RunnerOptions& options) {
  DeviceNeed need;
  need.context_tokens = options.context_tokens;
  const WorkspaceBytes workspaces =
      Runner::workspace_bytes_needed(config, types.activations, options);
  need.workspace_bytes = workspaces.dense;
  need.experts_bytes = workspaces.experts;
  for (const LayerSpec& layer : config.layers()) {
    if (layer.role != LayerRole::kMain) continue;
    need.kv_page_bytes.push_back(KvPool::page_bytes(config, types.kv, layer));
    const bool routed = layer.ffn == FfnKind::kMoe;
    need.num_experts.push_back(routed ? layer.router.num_experts : 0);
    if (routed) need.slot_bytes = std::max(need.slot_bytes, source.expert_bytes(layer.index));
  }
  need.weight_bytes.resize(need.kv_page_bytes.size());
  for (const TensorSpec& tensor : tensor_table(config)) {
    if (tensor.category == TensorCategory::kRoutedExperts ||
        tensor.category == TensorCategory::kMtp) {
      continue;
    }
    if (tensor.layer >= 0) {
      need.weight_bytes[static_cast<std::size_t>(tensor.layer)] += device_bytes(tensor, source);
    } else if (tensor.category != TensorCategory::kEmbedding || config.tie_word_embeddings) {
      need.head_bytes += device_bytes(tensor, source);
    }
  }
  return need;
}

Result<std::optional<DevicePlan>> place_on_gpus(const ModelFlags& flags, const ModelConfig& config,
                                                const storage::ModelSource& source,
                                                BackendTypes types, const RunnerOptions& options,
                                                const Gpus& gpus) {
  if (!may_use_gpus(flags)) return std::optional<DevicePlan>();
  // Who says nothing of GPUs gets those that suffice.
  const bool asked_for = flags.backend == "cuda" || flag_about_gpus(flags) != nullptr;
  std::int64_t vram_bytes = 0;
  if (!flags.vram.empty()) {
    ASSIGN_OR_RETURN(vram_bytes, parse_size(flags.vram), "--vram");
  }
  const std::vector<GpuInfo> list = gpus.list();
  if (list.empty() && !asked_for) return std::optional<DevicePlan>();
  if (list.empty()) {
    return make_error(ErrorCode::kNotFound, "no GPU is found: {}; --backend cpu needs none",
                      gpus.support());
  }
  const auto make_plan = [&]() -> Result<DevicePlan> {
    const bool named = !flags.devices.empty();
    ASSIGN_OR_RETURN(std::vector<DeviceRoom> rooms,
                     named ? named_rooms(flags.devices, list, gpus) : usable_rooms(list, gpus));
    for (std::size_t i = 0; i < rooms.size(); ++i) {
      rooms[i].scratch_bytes = gpus.scratch_bytes(
          config, backend_need(rooms[i].gpu, static_cast<int>(i), types, options));
    }
    DeviceNeed need = device_need(config, source, types, options);
    need.context_flag = flags.context_flag;
    if (named) return plan_devices(need, rooms, vram_bytes);
    ASSIGN_OR_RETURN(DeviceChoice choice, choose_devices(need, rooms, vram_bytes));
    for (const LeftOut& device : choice.left_out) {
      say_notice(fmt::format("GPU {} is left out: {}", device.gpu, device.why));
    }
    return std::move(choice.plan);
  };
  Result<DevicePlan> plan = make_plan();
  if (plan.ok()) return std::optional(*std::move(plan));
  if (asked_for) return plan.error();
  say_notice(fmt::format("without GPUs, since {}", plan.error().message()));
  return std::optional<DevicePlan>();
}

std::vector<std::string> describe(const DevicePlan& plan, const Gpus& gpus) {
  const std::vector<GpuInfo> list = gpus.list();
  std::vector<std::string> lines;
  int first_layer = 0;
  for (std::size_t i = 0; i < plan.devices.size(); ++i) {
    const DevicePlan::Device& device = plan.devices[i];
    std::string layers = "no layers";
    if (device.num_layers > 0) {
      layers = fmt::format("layers {} to {}", first_layer, first_layer + device.num_layers - 1);
    }
    first_layer += device.num_layers;
    lines.push_back(fmt::format(
        "device {} (GPU {}, {}): {}, {:.2f} of {:.2f} GiB for all but routed experts, room for {} "
        "of those",
        i, device.gpu, list[static_cast<std::size_t>(device.gpu)].name, layers,
        gib(device.fixed_bytes), gib(device.budget_bytes), device.num_slots));
  }
  return lines;
}

Result<EngineBackends> make_gpu_backends(const DevicePlan& plan, const ModelConfig& config,
                                         BackendTypes types, const RunnerOptions& options,
                                         const GpuExtras& extras, const Gpus& gpus) {
  EngineBackends backends;
  std::vector<int> used;
  for (const DevicePlan::Device& device : plan.devices) {
    GpuBackendNeed need =
        backend_need(device.gpu, static_cast<int>(backends.backends.size()), types, options);
    need.options.measure_busy = extras.measure_busy;
    need.options.fast_experts = extras.fast_experts;
    ASSIGN_OR_RETURN(backends.backends.emplace_back(), gpus.make_backend(config, need));
    used.push_back(device.gpu);
  }
  RETURN_IF_ERROR(gpus.connect(used));
  backends.dense = plan.layer_device;
  return backends;
}

Result<std::unique_ptr<TieredExperts>> make_tiers(const DevicePlan& plan, const Engine& engine,
                                                  std::unique_ptr<ExpertManager> ram,
                                                  const ExpertSource& source,
                                                  const ModelFlags& flags, const Gpus& gpus,
                                                  const Clock& clock) {
  const std::span<Backend* const> backends = engine.placement().backends();
  const std::size_t num_devices = plan.devices.size();
  TierOptions options;
  ASSIGN_OR_RETURN(options.rule, parse_rule(flags.expert_site));
  options.host_computes = backends.size() > num_devices;
  options.num_shared_experts = engine.config().n_shared_experts;
  for (const int index : plan.layer_device) {
    options.dense_device.push_back(backends[static_cast<std::size_t>(index)]->device());
  }
  // 1. What the processors take, while their memory is not full yet.
  const std::vector<ExpertLayer> layers = expert_layers(engine.config());
  std::int64_t slot_bytes = 0;
  for (const ExpertLayer& layer : layers) {
    slot_bytes = std::max(slot_bytes, source.expert_bytes(layer.layer));
  }
  std::vector<CostSubjects::Device> measured;
  measured.reserve(num_devices);
  for (std::size_t i = 0; i < num_devices; ++i) {
    measured.push_back({backends[i], std::max(plan.devices[i].num_slots, 1) * slot_bytes});
  }
  const CostSubjects subjects{options.host_computes ? backends.back() : nullptr, measured};
  ASSIGN_OR_RETURN(const ExpertCosts costs,
                   measure_costs(engine.config(), source, subjects, clock));
  // 2. Slots in what is left of it.
  std::vector<std::unique_ptr<DeviceSlots>> slots;
  for (std::size_t i = 0; i < num_devices; ++i) {
    const DevicePlan::Device& device = plan.devices[i];
    if (device.num_slots == 0) continue;
    CudaSlotsOptions wanted;
    wanted.device = device.gpu;
    wanted.logical = static_cast<int>(i);
    wanted.num_slots = device.num_slots;
    wanted.slot_bytes = slot_bytes;
    ASSIGN_OR_RETURN(slots.emplace_back(), gpus.make_slots(wanted));
  }
  return TieredExperts::create(std::move(ram), layers, source, std::move(slots), costs,
                               std::move(options));
}

}  // namespace stoker::tools
