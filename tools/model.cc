#include "tools/model.h"

#include <algorithm>
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
                       const std::string& context_flag, bool on_gpus) {
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
    need.kv_bytes = config.kv_bytes_per_token(types.kv) * options.context_tokens;
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

// The devices of the plan and, where there are experts, the host beside them; without a plan the
// host alone.
Result<EngineBackends> make_backends(LoadedModel& model, const ModelFlags& flags,
                                     const ModelConfig& config, BackendTypes types,
                                     const RunnerOptions& options, const DevicePlan* plan,
                                     const LoadOptions& wanted, const Gpus& gpus) {
  EngineBackends backends;
  if (plan != nullptr) {
    for (const std::string& line : describe(*plan, gpus)) say_notice(line);
    const GpuExtras extras{.measure_busy = wanted.measure_busy,
                           .fast_experts = flags.expert_arithmetic == "fast"};
    ASSIGN_OR_RETURN(backends, make_gpu_backends(*plan, config, types, options, extras, gpus));
    if (model.experts == nullptr) return backends;
  }
  ASSIGN_OR_RETURN(BackendChoice host, make_host_backend(flags));
  model.team = std::move(host.team);
  backends.backends.push_back(std::move(host.backend));
  return backends;
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
  for (const std::string& notice : experts->take_notices()) say_notice(notice);
}

Result<LoadedModel> load_model(const ModelFlags& flags, LoadOptions wanted) {
  LoadedModel model;
  model.clock = std::make_unique<SteadyClock>();
  const std::int64_t start_us = model.clock->now_us();
  // 1. What is asked for, what is there, and whether it fits.
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
  const Gpus& gpus = wanted.gpus != nullptr ? *wanted.gpus : cuda_gpus();
  ASSIGN_OR_RETURN(const std::optional<DevicePlan> plan,
                   place_on_gpus(flags, config, *model.source, types, options, gpus));
  const MemoryNeed need = memory_need(config, *model.source, types, options, flags.context_flag,
                                      /*on_gpus=*/plan.has_value());
  ASSIGN_OR_RETURN(const int num_slots,
                   plan_slots(need, ram_bytes, MachineInfo::detect().memory_available_bytes));
  const std::string name = model.directory.lexically_normal().filename().string();
  ASSIGN_OR_RETURN(model.record, RunRecord::create(flags, config, name));
  // 2. Experts in RAM; their threads before the Team pins this one.
  std::unique_ptr<ExpertManager> experts;
  if (num_slots > 0) {
    model.num_experts = static_cast<int>(need.num_experts);
    PagingNeed paging{num_slots, need.slot_bytes, {}, wanted.modelled_drive_bytes_per_second};
    if (plan) {
      paging.pin = [&gpus, gpu = plan->devices.front().gpu](std::span<std::byte> memory) {
        return gpus.pin(memory, gpu);
      };
    }
    ASSIGN_OR_RETURN(experts,
                     model.paging.start(config, *model.source, *model.clock, flags, paging));
    model.experts = experts.get();
    model.say_notices();
  }
  // 3. Who computes, with everything else.
  ASSIGN_OR_RETURN(EngineBackends backends, make_backends(model, flags, config, types, options,
                                                          plan ? &*plan : nullptr, wanted, gpus));
  {
    ProgressBar progress("loading weights", ProgressBar::Unit::kBytes);
    ASSIGN_OR_RETURN(model.engine,
                     Engine::load(config, *model.source, std::move(backends), progress.callback()));
  }
  // 4. Experts above RAM, and a runner over all of it.
  std::unique_ptr<ExpertProvider> provider;
  if (experts == nullptr) {
    provider = std::make_unique<NoExperts>();
  } else if (plan) {
    ASSIGN_OR_RETURN(std::unique_ptr<TieredExperts> tiers,
                     make_tiers(*plan, *model.engine, std::move(experts), model.paging.source(),
                                flags, gpus, *model.clock));
    model.tiers = tiers.get();
    provider = std::move(tiers);
  } else {
    provider = std::move(experts);
  }
  ASSIGN_OR_RETURN(model.runner, Runner::create(model.engine, std::move(provider), options));
  model.record->attach(*model.runner);
  if (model.experts != nullptr && wanted.modelled_drive_bytes_per_second == 0) {
    ASSIGN_OR_RETURN(const std::string id, model_id(model.directory));
    model.record->keep_usage(*model.experts, expert_layers(config), id);
  }
  model.load_seconds = seconds_since(*model.clock, start_us);
  return model;
}

}  // namespace stoker::tools
