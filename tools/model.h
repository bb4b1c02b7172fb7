// From flags to a model that runs: the one place that puts the engine together.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>

#include "core/base/clock.h"
#include "core/base/error.h"
#include "core/base/team.h"
#include "core/interface/expert_source.h"
#include "core/model/tensor_table.h"
#include "core/runtime/engine.h"
#include "core/runtime/runner.h"
#include "prefetch/expert_manager.h"
#include "storage/model_source.h"
#include "storage/slot_arena.h"
#include "tools/model_flags.h"

namespace stoker::tools {

class RunRecord;  // run_record.h

// A model that runs. Members stand in the order they are built, and go the other way.
struct LoadedModel {
  LoadedModel();
  LoadedModel(LoadedModel&&) noexcept;
  LoadedModel& operator=(LoadedModel&&) noexcept;  // of an empty one
  ~LoadedModel();                                  // says what has not been said

  // Tells the person who watches, on standard error, what came up since the last call: blocks that
  // were repaired, slots that are too few. Call it when nothing else is being written.
  void say_notices() const;

  std::filesystem::path directory;
  std::unique_ptr<storage::ModelSource> source;
  std::unique_ptr<Clock> clock;
  // Of a model with experts; null for others.
  std::unique_ptr<storage::HostSlotArena> arena;
  std::unique_ptr<ExpertSource> unread_experts;  // with a modelled drive only
  std::unique_ptr<ExpertReader> reader;
  int num_experts = 0;         // over all layers
  std::unique_ptr<Team> team;  // null for backends that need none
  std::shared_ptr<const Engine> engine;
  std::unique_ptr<Runner> runner;
  ExpertManager* experts = nullptr;   // the runner's
  std::unique_ptr<RunRecord> record;  // writes --stats, --record-trace and the usage history
  CategoryBytes bytes{};              // stored, by category
  double load_seconds = 0.0;
};

struct LoadOptions {
  // Rows that a command needs beyond the defaults of RunnerOptions; 0 leaves the default.
  int prefill_rows = 0;
  int logit_rows = 0;
  // For benchmarks: experts come, at no cost of CPU, from a drive of this speed that delivers bytes
  // of other experts. 0: from the model's files.
  std::int64_t modelled_drive_bytes_per_second = 0;
};

// Cheap checks first; what does not fit is refused, with the numbers, before anything is loaded.
Result<LoadedModel> load_model(const ModelFlags& flags, LoadOptions options = {});

// Another reader of the model's expert files, with the same settings.
Result<std::unique_ptr<ExpertReader>> open_second_reader(const LoadedModel& model,
                                                         const ModelFlags& flags);

}  // namespace stoker::tools
