// What the expert cache did, for people and programs: counters as JSON, and --stats FILE.
#pragma once

#include <cstdio>
#include <filesystem>
#include <memory>
#include <string>

#include "core/base/error.h"
#include "core/interface/expert_provider.h"
#include "core/runtime/step.h"
#include "tools/json_object.h"

namespace stoker::tools {

// Members "hit" … "felt_wait_us" of design section 8, added to `object`; then those of faults.
void add_counters(JsonObject& object, const LayerCounters& counters);

// "hit 41 %, 1.93 GB/s, waited 62 %" of work that took `seconds`; empty if no expert was demanded.
std::string describe_counters(const LayerCounters& counters, double seconds);

// Writes, while a model runs,
//   {"tokens": [{"rows", "decode_rows", "us", "layers": [{"layer", "hit", …}]}, …], "total": {…},
//    "expert_arithmetic": …}
// with one entry of "tokens" per step: a decoded token of each session in it, or a stretch of
// prompt; and the arithmetic that decode computes experts in, a value of that flag, unless it is
// empty.
class StatsFile final : public StepListener {
 public:
  static Result<std::unique_ptr<StatsFile>> create(const std::filesystem::path& path,
                                                   std::string expert_arithmetic = "");
  ~StatsFile() override { (void)close(); }
  StatsFile(const StatsFile&) = delete;
  StatsFile& operator=(const StatsFile&) = delete;

  void on_step(const StepRecord& record) override;
  // Writes the total; without it the file is not JSON. Says if any write failed.
  Status close();

 private:
  StatsFile(std::filesystem::path path, std::string expert_arithmetic, std::FILE* file)
      : path_(std::move(path)), expert_arithmetic_(std::move(expert_arithmetic)), file_(file) {}

  std::filesystem::path path_;
  std::string expert_arithmetic_;
  std::FILE* file_;
  bool first_ = true;
  LayerCounters total_;
  std::int64_t total_us_ = 0, total_rows_ = 0;
};

}  // namespace stoker::tools
