// From flags to a model that runs: the one place that puts the engine together.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>

#include "core/base/clock.h"
#include "core/base/error.h"
#include "core/base/team.h"
#include "core/model/tensor_table.h"
#include "core/runtime/engine.h"
#include "core/runtime/runner.h"
#include "prefetch/expert_manager.h"
#include "prefetch/tiered_experts.h"
#include "storage/model_source.h"
#include "tools/gpus.h"
#include "tools/model_flags.h"
#include "tools/paging.h"

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
  Paging paging;               // of a model with experts
  int num_experts = 0;         // over all layers
  std::unique_ptr<Team> team;  // null for backends that need none
  std::shared_ptr<const Engine> engine;
  std::unique_ptr<Runner> runner;
  ExpertManager* experts = nullptr;   // the runner's; null without experts
  TieredExperts* tiers = nullptr;     // likewise; null without GPUs
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
  bool measure_busy = false;   // Backend::busy_us() of GPUs says something
  const Gpus* gpus = nullptr;  // outlives the model; null: cuda_gpus()
};

// Cheap checks first; what does not fit is refused, with the numbers, before anything is loaded.
Result<LoadedModel> load_model(const ModelFlags& flags, LoadOptions options = {});

}  // namespace stoker::tools
