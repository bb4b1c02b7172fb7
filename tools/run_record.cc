#include "tools/run_record.h"

#include <fmt/format.h>

#include <cstdio>
#include <cstdlib>
#include <string>

namespace stoker::tools {
namespace {

void say(const Status& status) {
  if (!status.ok()) fmt::print(stderr, "stoker: {}\n", status.error().message());
}

}  // namespace

Result<std::unique_ptr<RunRecord>> RunRecord::create(const ModelFlags& flags,
                                                     const ModelConfig& config,
                                                     const std::string& model) {
  auto record = std::unique_ptr<RunRecord>(new RunRecord());
  if (!flags.stats.empty()) {
    ASSIGN_OR_RETURN(record->stats_, StatsFile::create(flags.stats), "--stats");
  }
  if (!flags.record_trace.empty()) {
    record->trace_file_ = flags.record_trace;
    record->recorder_ = std::make_unique<TraceRecorder>(config, model);
  }
  return record;
}

RunRecord::~RunRecord() {
  if (stats_ != nullptr) say(stats_->close());
  if (recorder_ != nullptr) {
    say(recorder_->write(trace_file_));
    if (recorder_->num_dropped() > 0) {
      fmt::print(stderr, "stoker: {}: the last {} tokens are not in it, it would be too large\n",
                 trace_file_.string(), recorder_->num_dropped());
    }
  }
}

void RunRecord::attach(Runner& runner) {
  if (stats_ != nullptr) runner.set_listener(stats_.get());
  if (recorder_ != nullptr) runner.set_hooks(recorder_.get());
}

void RunRecord::keep_usage(ExpertManager& experts, std::filesystem::path file) {
  experts_ = &experts;
  usage_file_ = std::move(file);
}

std::filesystem::path usage_file(const std::string& model_id) {
  std::filesystem::path cache;
  if (const char* const dir = std::getenv("XDG_CACHE_HOME"); dir != nullptr && *dir != '\0') {
    cache = dir;
  } else if (const char* const home = std::getenv("HOME"); home != nullptr && *home != '\0') {
    cache = std::filesystem::path(home) / ".cache";
  } else {
    return {};
  }
  return cache / "stoker" / ("usage-" + model_id);
}

}  // namespace stoker::tools
