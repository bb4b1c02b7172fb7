#include "tools/run_record.h"

#include <fmt/format.h>

#include <cstdio>
#include <cstdlib>
#include <set>
#include <string>
#include <vector>

#include "core/base/file.h"
#include "storage/write_file.h"
#include "tools/notice.h"

namespace stoker::tools {
namespace {

void say(const Status& status) {
  if (!status.ok()) say_notice(status.error().message());
}

}  // namespace

Result<std::unique_ptr<RunRecord>> RunRecord::create(const ModelFlags& flags,
                                                     const ModelConfig& config,
                                                     const std::string& model) {
  auto record = std::unique_ptr<RunRecord>(new RunRecord());
  if (!flags.stats.empty()) {
    ASSIGN_OR_RETURN(record->stats_, StatsFile::create(flags.stats, flags.expert_arithmetic),
                     "--stats");
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
      say_notice(fmt::format("{}: the last {} tokens are not in it, it would be too large",
                             trace_file_.string(), recorder_->num_dropped()));
    }
  }
  if (experts_ != nullptr && !usage_file_.empty()) {
    std::error_code ignored;
    std::filesystem::create_directories(usage_file_.parent_path(), ignored);
    (void)storage::write_text_file(usage_file_, experts_->usage().to_text(model_id_));
  }
}

void RunRecord::attach(Runner& runner) {
  if (stats_ != nullptr) runner.set_listener(stats_.get());
  if (recorder_ != nullptr) runner.set_hooks(recorder_.get());
}

void RunRecord::keep_usage(ExpertManager& experts, std::span<const ExpertLayer> layers,
                           const std::string& model_id) {
  experts_ = &experts;
  usage_file_ = usage_file(model_id);
  model_id_ = model_id;
  UsageHistory& usage = experts.usage();
  constexpr std::size_t kMaxBytes = std::size_t{64} << 20;
  if (!usage_file_.empty()) {
    const Result<std::string> text = read_small_file(usage_file_, kMaxBytes);
    if (text.ok()) (void)usage.from_text(*text, model_id);
  }
  std::vector<ExpertId> wanted = usage.most_used();
  const std::set<ExpertId> seen(wanted.begin(), wanted.end());
  int num_experts = 0;
  for (const ExpertLayer& layer : layers) num_experts += layer.num_experts;
  if (experts.cache().num_slots() < num_experts) layers = {};
  for (const ExpertLayer& layer : layers) {
    for (int expert = 0; expert < layer.num_experts; ++expert) {
      if (!seen.contains({layer.layer, expert})) wanted.push_back({layer.layer, expert});
    }
  }
  experts.warm_up(std::move(wanted));
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
