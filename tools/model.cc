#include "tools/model.h"

#include <algorithm>
#include <optional>
#include <utility>
#include <vector>

#include "core/base/file.h"
#include "core/model/model_config.h"
#include "cpu/machine_info.h"
#include "storage/checksum.h"
#include "storage/open_model.h"
#include "tools/backend_choice.h"
#include "tools/gpu_placement.h"
#include "tools/memory_plan.h"
#include "tools/notice.h"
#include "tools/progress_bar.h"
#include "tools/run_record.h"

namespace stoker::tools {
namespace {

constexpr std::int64_t kActivationBudget = std::int64_t{1} << 30;
constexpr int kMostPrefillRows = 4096;

double seconds_since(const Clock& clock, std::int64_t start_us) {
  return static_cast<double>(clock.now_us() - start_us) / 1e6;
}

// As many rows as the activation budget holds, a power of two.
int affordable_prefill_rows(const ModelConfig& config, DType activations, RunnerOptions options) {
  int rows = kMostPrefillRows;
  for (; rows > RunnerOptions().prefill_rows; rows /= 2) {
    options.prefill_rows = rows;
    const WorkspaceBytes needed = Runner::workspace_bytes_needed(config, activations, options);
    if (needed.total({}) <= kActivationBudget) break;
  }
  return rows;
}

RunnerOptions runner_options(const ModelFlags& flags, const ModelConfig& config, BackendTypes types,
                             const LoadOptions& wanted) {
  RunnerOptions options;
  options.context_tokens = std::min(flags.ctx, config.max_position_embeddings);
  if (wanted.logit_rows > 0) options.prefill_logit_rows = wanted.logit_rows;
  options.prefill_rows = flags.prefill_rows > 0 ? flags.prefill_rows
                         : wanted.prefill_rows > 0
                             ? wanted.prefill_rows
                             : affordable_prefill_rows(config, types.activations, options);
  options.prefill_rows = std::min(options.prefill_rows, options.context_tokens);
  return options;
}

// Of the host. With GPUs for the dense part it keeps the embedding, mailboxes, and what it needs to
// compute experts.
MemoryNeed memory_need(const ModelConfig& config, const storage::ModelSource& source,
                       BackendTypes types, const RunnerOptions& options,
                       const ContextFlag& context_flag, bool on_gpus) {
  MemoryNeed need;
  need.context_tokens = options.context_tokens;
  need.context_flag = context_flag;
  const WorkspaceBytes workspaces =
      Runner::workspace_bytes_needed(config, types.activations, options);
  if (on_gpus) {
    need.dense_bytes = source.category_bytes()[static_cast<int>(TensorCategory::kEmbedding)];
    need.workspace_bytes = workspaces.experts + workspaces.host;
  } else {
    need.dense_bytes = source.dense_bytes();
    need.kv_bytes =
        config.kv_bytes_per_token(types.kv) * kPageTokens * pages_for(options.context_tokens);
    need.workspace_bytes = workspaces.total({});
  }
  for (const ExpertLayer& layer : expert_layers(config)) {
    need.num_experts += layer.num_experts;
    need.fewest_slots = std::max(need.fewest_slots, layer.top_k);
    need.slot_bytes = std::max(need.slot_bytes, source.expert_bytes(layer.layer));
  }
  return need;
}

// The provider of a model without routed experts.
class NoExperts final : public ExpertProvider {
 public:
  Result<ExpertSetPtr> demand(int layer, std::span<const ExpertUse> /*uses*/) override {
    CHECK(false, "layer {} has no experts", layer);
  }
  void hint(const LookAhead& /*guesses*/) override {}
  void wait(std::chrono::microseconds /*timeout*/) override {}
};

// Tells models apart by what they are and where they lie.
Result<std::string> model_id(const std::filesystem::path& directory) {
  ASSIGN_OR_RETURN(std::string text,
                   read_small_file(directory / "config.json", ModelConfig::kMaxBytes));
  std::error_code ignored;
  text += std::filesystem::canonical(directory, ignored).string();
  return storage::hex(storage::hash128(text));
}

// What is decided before anything is loaded.
struct LoadPlan {
  ModelConfig config;
  BackendTypes types;
  RunnerOptions options;
  std::optional<DevicePlan> devices;  // empty: the host alone
  MemoryNeed memory;
  int num_slots = 0;  // of experts in RAM
};

// Looks at the model, whose directory and source it opens, and at the machine.
Result<LoadPlan> plan_load(LoadedModel& model, const ModelFlags& flags, const LoadOptions& wanted,
                           const Gpus& gpus) {
  RETURN_IF_ERROR(check_gpu_flags(flags));
  ASSIGN_OR_RETURN(model.directory, model_directory(flags.model));
  ASSIGN_OR_RETURN(ModelConfig config, ModelConfig::load(model.directory));
  std::int64_t ram_bytes = 0;
  if (!flags.ram.empty()) {
    ASSIGN_OR_RETURN(ram_bytes, parse_size(flags.ram), "--ram");
  }
  const std::vector<std::filesystem::path> store(flags.store.begin(), flags.store.end());
  ASSIGN_OR_RETURN(model.source, storage::open_model(model.directory, config, store));
  model.bytes = model.source->category_bytes();
  ASSIGN_OR_RETURN(const BackendTypes types, backend_types(flags));
  RETURN_IF_ERROR(config.check_kv_format(types.kv), "--kv-cache {}", kv_format_name(types.kv));
  const RunnerOptions options = runner_options(flags, config, types, wanted);
  ASSIGN_OR_RETURN(std::optional<DevicePlan> devices,
                   place_on_gpus(flags, config, *model.source, types, options, gpus));
  MemoryNeed memory = memory_need(config, *model.source, types, options, flags.context_flag,
                                  /*on_gpus=*/devices.has_value());
  ASSIGN_OR_RETURN(const int num_slots,
                   plan_slots(memory, ram_bytes, MachineInfo::detect().memory_available_bytes));
  return LoadPlan{std::move(config), types,    options, std::move(devices),
                  std::move(memory), num_slots};
}

// Experts in RAM; null if the model has none.
Result<std::unique_ptr<ExpertManager>> start_paging(LoadedModel& model, const ModelFlags& flags,
                                                    const LoadPlan& plan, const LoadOptions& wanted,
                                                    const Gpus& gpus) {
  std::unique_ptr<ExpertManager> experts;
  if (plan.num_slots == 0) return experts;
  model.num_experts = static_cast<int>(plan.memory.num_experts);
  PagingNeed need{
      plan.num_slots, plan.memory.slot_bytes, {}, wanted.modelled_drive_bytes_per_second};
  if (plan.devices) {
    need.pin = [&gpus, gpu = plan.devices->devices.front().gpu](std::span<std::byte> memory) {
      return gpus.pin(memory, gpu);
    };
  }
  ASSIGN_OR_RETURN(experts,
                   model.paging.start(plan.config, *model.source, *model.clock, flags, need));
  model.experts = experts.get();
  model.say_notices();
  return experts;
}

// The devices of the plan and, where there are experts, the host beside them; without devices the
// host alone.
Result<EngineBackends> make_backends(LoadedModel& model, const ModelFlags& flags,
                                     const LoadPlan& plan, const LoadOptions& wanted,
                                     const Gpus& gpus) {
  EngineBackends backends;
  if (plan.devices) {
    for (const std::string& line : describe(*plan.devices, gpus)) say_notice(line);
    const GpuExtras extras{.measure_busy = wanted.measure_busy,
                           .fast_experts = flags.expert_arithmetic == "fast"};
    ASSIGN_OR_RETURN(backends, make_gpu_backends(*plan.devices, plan.config, plan.types,
                                                 plan.options, extras, gpus));
    if (model.experts == nullptr) return backends;
  }
  ASSIGN_OR_RETURN(BackendChoice host, make_host_backend(flags));
  model.team = std::move(host.team);
  backends.backends.push_back(std::move(host.backend));
  return backends;
}

// What gives the runner its experts: those in RAM, on devices above them, or none.
Result<std::unique_ptr<ExpertProvider>> make_provider(LoadedModel& model, const ModelFlags& flags,
                                                      const LoadPlan& plan,
                                                      std::unique_ptr<ExpertManager> experts,
                                                      const Gpus& gpus) {
  using Provider = std::unique_ptr<ExpertProvider>;
  if (experts == nullptr) return Provider(std::make_unique<NoExperts>());
  if (!plan.devices) return Provider(std::move(experts));
  ASSIGN_OR_RETURN(std::unique_ptr<TieredExperts> tiers,
                   make_tiers(*plan.devices, *model.engine, std::move(experts),
                              model.paging.source(), flags, gpus, *model.clock));
  model.tiers = tiers.get();
  return Provider(std::move(tiers));
}

}  // namespace

LoadedModel::LoadedModel() = default;
LoadedModel::LoadedModel(LoadedModel&&) noexcept = default;
LoadedModel& LoadedModel::operator=(LoadedModel&&) noexcept = default;

LoadedModel::~LoadedModel() {
  if (runner != nullptr) say_notices();
  record.reset();
  runner.reset();
}

void LoadedModel::say_notices() const {
  if (experts == nullptr) return;
  for (const std::string& notice :
       tiers != nullptr ? tiers->take_notices() : experts->take_notices()) {
    say_notice(notice);
  }
}

Result<LoadedModel> load_model(const ModelFlags& flags, LoadOptions wanted) {
  LoadedModel model;
  model.clock = std::make_unique<SteadyClock>();
  const std::int64_t start_us = model.clock->now_us();
  const Gpus& gpus = wanted.gpus != nullptr ? *wanted.gpus : cuda_gpus();
  // 1. What is asked for, what is there, and whether it fits.
  ASSIGN_OR_RETURN(const LoadPlan plan, plan_load(model, flags, wanted, gpus));
  const std::string name = model.directory.lexically_normal().filename().string();
  ASSIGN_OR_RETURN(model.record, RunRecord::create(flags, plan.config, name));
  // 2. Experts in RAM; their threads before the Team pins this one.
  ASSIGN_OR_RETURN(std::unique_ptr<ExpertManager> experts,
                   start_paging(model, flags, plan, wanted, gpus));
  // 3. Who computes, with everything else.
  ASSIGN_OR_RETURN(EngineBackends backends, make_backends(model, flags, plan, wanted, gpus));
  {
    ProgressBar progress("loading weights", ProgressBar::Unit::kBytes);
    ASSIGN_OR_RETURN(model.engine, Engine::load(plan.config, *model.source, std::move(backends),
                                                progress.callback()));
  }
  // 4. Experts above RAM, and a runner over all of it.
  ASSIGN_OR_RETURN(std::unique_ptr<ExpertProvider> provider,
                   make_provider(model, flags, plan, std::move(experts), gpus));
  ASSIGN_OR_RETURN(model.runner, Runner::create(model.engine, std::move(provider), plan.options));
  model.record->attach(*model.runner);
  if (model.experts != nullptr && wanted.modelled_drive_bytes_per_second == 0) {
    ASSIGN_OR_RETURN(const std::string id, model_id(model.directory));
    model.record->keep_usage(*model.experts, expert_layers(plan.config), id);
  }
  model.load_seconds = seconds_since(*model.clock, start_us);
  return model;
}

}  // namespace stoker::tools
