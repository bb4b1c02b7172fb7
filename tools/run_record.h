// What a run leaves behind: --stats, --record-trace, and how often each expert was used.
#pragma once

#include <filesystem>
#include <memory>

#include "core/base/error.h"
#include "core/model/model_config.h"
#include "core/runtime/runner.h"
#include "prefetch/expert_manager.h"
#include "tools/expert_stats.h"
#include "tools/model_flags.h"
#include "tools/trace_hooks.h"

namespace stoker::tools {

class RunRecord {
 public:
  // Opens what the flags name, so that a file that cannot be written is said at once. `model`: a
  // name that people will recognise.
  static Result<std::unique_ptr<RunRecord>> create(const ModelFlags& flags,
                                                   const ModelConfig& config,
                                                   const std::string& model);
  // Writes what is not written yet; what goes wrong then is said on standard error. The runner that
  // was attached still lives.
  ~RunRecord();

  // Hears of every step of `runner` from now on.
  void attach(Runner& runner);
  // The usage of a model's experts in earlier runs is read now, and the most used are warmed up
  // (with room for all, all of them); what this run adds is written in the end. A convenience:
  // nothing is said if it fails. `model_id` is a hash.
  void keep_usage(ExpertManager& experts, std::span<const ExpertLayer> layers,
                  const std::string& model_id);

  // Null without --record-trace. Steps with hooks of their own must hear of it through them.
  StepHooks* recorder() { return recorder_.get(); }

 private:
  RunRecord() = default;

  std::unique_ptr<StatsFile> stats_;
  std::unique_ptr<TraceRecorder> recorder_;
  std::filesystem::path trace_file_, usage_file_;
  std::string model_id_;
  ExpertManager* experts_ = nullptr;
};

// Where the usage of a model's experts is kept: $XDG_CACHE_HOME/stoker/usage-<id>, else below
// ~/.cache; empty if there is no home.
std::filesystem::path usage_file(const std::string& model_id);

}  // namespace stoker::tools
