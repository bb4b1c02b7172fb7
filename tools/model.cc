#include "tools/model.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <thread>
#include <utility>
#include <vector>

#include "core/base/file.h"
#include "cpu/machine_info.h"
#include "prefetch/modelled_reader.h"
#include "storage/block_reader.h"
#include "storage/checksum.h"
#include "storage/open_model.h"
#include "storage/slot_arena.h"
#include "tools/backend_choice.h"
#include "tools/memory_plan.h"
#include "tools/progress_bar.h"
#include "tools/run_record.h"

namespace stoker::tools {
namespace {

constexpr std::int64_t kActivationBudget = std::int64_t{1} << 30;
constexpr int kMostPrefillRows = 4096;

double seconds_since(const Clock& clock, std::int64_t start_us) {
  return static_cast<double>(clock.now_us() - start_us) / 1e6;
}

// Once, for the person who watches: standard output carries results only.
void log_notice(const std::string& text) { fmt::print(stderr, "stoker: {}\n", text); }

// As many rows as the activation budget holds, a power of two.
int affordable_prefill_rows(const ModelConfig& config, DType activations, RunnerOptions options) {
  int rows = kMostPrefillRows;
  for (; rows > RunnerOptions().prefill_rows; rows /= 2) {
    options.prefill_rows = rows;
    if (Runner::workspace_bytes_needed(config, activations, options) <= kActivationBudget) break;
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

MemoryNeed memory_need(const ModelConfig& config, const storage::ModelSource& source,
                       BackendTypes types, const RunnerOptions& options) {
  const KvFormat kv = types.kv == DType::kF32 ? KvFormat::kF32 : KvFormat::kBf16;
  MemoryNeed need;
  need.dense_bytes = source.dense_bytes();
  need.context_tokens = options.context_tokens;
  need.kv_bytes = config.kv_bytes_per_token(kv) * options.context_tokens;
  need.workspace_bytes = Runner::workspace_bytes_needed(config, types.activations, options);
  for (const ExpertLayer& layer : expert_layers(config)) {
    need.num_experts += layer.num_experts;
    need.fewest_slots = std::max(need.fewest_slots, layer.top_k);
    need.slot_bytes = std::max(need.slot_bytes, source.expert_bytes(layer.layer));
  }
  return need;
}

Result<std::unique_ptr<storage::BlockReader>> open_files(const storage::ModelSource& source,
                                                         const ModelFlags& flags) {
  storage::ReaderOptions options;
  if (flags.io != "auto") {
    options.io = flags.io == "uring" ? storage::IoChoice::kUring : storage::IoChoice::kPread;
  }
  if (flags.direct != "auto") {
    options.direct =
        flags.direct == "on" ? storage::DirectChoice::kOn : storage::DirectChoice::kOff;
  }
  return storage::open_reader(source, options);
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

// A source whose blocks need no checking: what a modelled drive delivers is whatever lies in the
// slot.
class UnreadExperts final : public ExpertSource {
 public:
  explicit UnreadExperts(const ExpertSource& source) : source_(source) {}
  int num_blocks(int layer) const override { return source_.num_blocks(layer); }
  std::int64_t expert_bytes(int layer) const override { return source_.expert_bytes(layer); }
  std::int64_t block_offset(int layer, int block) const override {
    return source_.block_offset(layer, block);
  }
  std::int64_t block_bytes(int layer, int block) const override {
    return source_.block_bytes(layer, block);
  }
  ExpertPart part(int layer, int block, const std::byte* bytes, DeviceId device) const override {
    return source_.part(layer, block, bytes, device);
  }
  Status land(ExpertId, int, int, std::byte*) const override { return {}; }
  Status read(ExpertId id, std::byte* dst) const override { return source_.read(id, dst); }

 private:
  const ExpertSource& source_;
};

// Every slot gets the bytes of some expert, so that what is computed with is never zeros.
Status fill_with_experts(const LoadedModel& model, std::span<const ExpertLayer> layers) {
  ProgressBar progress("reading experts", ProgressBar::Unit::kBytes);
  while (model.arena->num_usable() < model.arena->num_slots()) {
    RETURN_IF_ERROR(model.arena->status());
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  for (int slot = 0; slot < model.arena->num_slots(); ++slot) {
    const ExpertLayer& layer = layers[static_cast<std::size_t>(slot) % layers.size()];
    const int expert = slot / static_cast<int>(layers.size()) % layer.num_experts;
    RETURN_IF_ERROR(model.source->read(ExpertId{layer.layer, expert}, model.arena->slot(slot)));
    progress.update((slot + 1) * model.arena->slot_bytes(),
                    model.arena->num_slots() * model.arena->slot_bytes());
  }
  return {};
}

// Tells models apart by what they are and where they lie.
Result<std::string> model_id(const std::filesystem::path& directory) {
  constexpr std::size_t kMaxConfigBytes = std::size_t{16} << 20;
  ASSIGN_OR_RETURN(std::string text, read_small_file(directory / "config.json", kMaxConfigBytes));
  std::error_code ignored;
  text += std::filesystem::canonical(directory, ignored).string();
  return storage::hex(storage::hash128(text));
}

// The paging half of a model: memory, reader, and the manager that joins them. The I/O threads and
// the arena's are made here, before the Team pins the calling thread.
Result<std::unique_ptr<ExpertManager>> make_experts(LoadedModel& model, const ModelConfig& config,
                                                    const ModelFlags& flags, int num_slots,
                                                    std::int64_t slot_bytes,
                                                    const LoadOptions& wanted) {
  const std::vector<ExpertLayer> layers = expert_layers(config);
  for (const ExpertLayer& layer : layers) model.num_experts += layer.num_experts;
  ASSIGN_OR_RETURN(model.arena,
                   storage::HostSlotArena::create(
                       {.budget_bytes = num_slots * slot_bytes, .slot_bytes = slot_bytes}));
  const ExpertSource* source = model.source.get();
  if (wanted.modelled_drive_bytes_per_second > 0) {
    model.unread_experts = std::make_unique<UnreadExperts>(*model.source);
    source = model.unread_experts.get();
    ModelledReaderOptions modelled;
    modelled.drives = {
        {.bytes_per_second = static_cast<double>(wanted.modelled_drive_bytes_per_second)}};
    modelled.sleep = [](std::chrono::microseconds time) { std::this_thread::sleep_for(time); };
    model.reader = std::make_unique<ModelledReader>(*source, *model.clock, std::move(modelled));
    model.arena->start({});
    RETURN_IF_ERROR(fill_with_experts(model, layers));
  } else {
    ASSIGN_OR_RETURN(std::unique_ptr<storage::BlockReader> reader,
                     open_files(*model.source, flags));
    for (const std::string& notice : reader->notices()) log_notice(notice);
    model.arena->start([files = reader.get()](std::span<std::byte> memory) {
      if (files->register_memory(memory).ok()) return;
      for (const std::string& notice : files->notices()) log_notice(notice);
    });
    model.reader = std::move(reader);
  }
  ExpertManagerOptions options;
  options.prefetch.enabled = flags.prefetch == "on";
  return ExpertManager::create(layers, *source, *model.reader, *model.arena, *model.clock, options);
}

}  // namespace

LoadedModel::LoadedModel() = default;
LoadedModel::LoadedModel(LoadedModel&&) noexcept = default;
LoadedModel& LoadedModel::operator=(LoadedModel&&) noexcept = default;

LoadedModel::~LoadedModel() {
  if (runner != nullptr) say_notices();
  record.reset();
  runner.reset();
  if (arena != nullptr) arena->stop();  // it registers its memory with the reader
}

void LoadedModel::say_notices() const {
  if (experts == nullptr) return;
  for (const std::string& notice : experts->take_notices()) log_notice(notice);
}

Result<std::unique_ptr<ExpertReader>> open_second_reader(const LoadedModel& model,
                                                         const ModelFlags& flags) {
  ASSIGN_OR_RETURN(std::unique_ptr<storage::BlockReader> reader, open_files(*model.source, flags));
  return std::unique_ptr<ExpertReader>(std::move(reader));
}

Result<LoadedModel> load_model(const ModelFlags& flags, LoadOptions wanted) {
  LoadedModel model;
  model.clock = std::make_unique<SteadyClock>();
  const std::int64_t start_us = model.clock->now_us();
  // 1. What is there, and whether it fits.
  ASSIGN_OR_RETURN(model.directory, model_directory(flags.model));
  ASSIGN_OR_RETURN(ModelConfig config, ModelConfig::load(model.directory));
  std::int64_t ram_bytes = 0;
  if (!flags.ram.empty()) {
    ASSIGN_OR_RETURN(ram_bytes, parse_size(flags.ram), "--ram");
  }
  const std::vector<std::filesystem::path> store(flags.store.begin(), flags.store.end());
  ASSIGN_OR_RETURN(model.source, storage::open_model(model.directory, config, store));
  model.bytes = model.source->category_bytes();
  const std::string name = model.directory.lexically_normal().filename().string();
  ASSIGN_OR_RETURN(model.record, RunRecord::create(flags, config, name));
  ASSIGN_OR_RETURN(const BackendTypes types, backend_types(flags));
  const RunnerOptions options = runner_options(flags, config, types, wanted);
  const MemoryNeed need = memory_need(config, *model.source, types, options);
  ASSIGN_OR_RETURN(const int num_slots,
                   plan_slots(need, ram_bytes, MachineInfo::detect().memory_available_bytes));
  // 2. Experts: their threads first, see make_experts().
  std::unique_ptr<ExpertManager> experts;
  if (num_slots > 0) {
    ASSIGN_OR_RETURN(experts,
                     make_experts(model, config, flags, num_slots, need.slot_bytes, wanted));
    model.experts = experts.get();
    model.say_notices();
  }
  // 3. Everything else.
  ASSIGN_OR_RETURN(BackendChoice choice, make_backend(flags));
  model.team = std::move(choice.team);
  {
    ProgressBar progress("loading weights", ProgressBar::Unit::kBytes);
    ASSIGN_OR_RETURN(model.engine, Engine::load(config, *model.source, std::move(choice.backend),
                                                progress.callback()));
  }
  std::unique_ptr<ExpertProvider> provider = std::move(experts);
  if (provider == nullptr) provider = std::make_unique<NoExperts>();
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
