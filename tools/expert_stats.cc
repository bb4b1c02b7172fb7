#include "tools/expert_stats.h"

#include <fmt/format.h>

#include <cerrno>
#include <system_error>
#include <utility>

namespace stoker::tools {

void add_counters(JsonObject& object, const LayerCounters& counters) {
  object.add("hit", counters.hit)
      .add("late", counters.late)
      .add("miss", counters.miss)
      .add("demand_bytes", counters.demand_bytes)
      .add("prefetch_used_bytes", counters.prefetch_used_bytes)
      .add("prefetch_wasted_bytes", counters.prefetch_wasted_bytes)
      .add("felt_wait_us", counters.felt_wait_us)
      .add("device_hit", counters.device_hit)
      .add("device_upload", counters.device_upload)
      .add("promoted_bytes", counters.promoted_bytes)
      .add("host_us", counters.host_us)
      .add("retried_blocks", counters.retried_blocks)
      .add("repaired_blocks", counters.repaired_blocks);
}

std::string describe_counters(const LayerCounters& counters, double seconds) {
  const std::int64_t demanded = counters.hit + counters.late + counters.miss;
  if (demanded == 0 || seconds <= 0.0) return {};
  const auto bytes = static_cast<double>(counters.demand_bytes + counters.prefetch_used_bytes +
                                         counters.prefetch_wasted_bytes);
  std::string text = fmt::format(
      "hit {:.0f} %", 100.0 * static_cast<double>(counters.hit) / static_cast<double>(demanded));
  if (counters.device_hit > 0) {
    text +=
        fmt::format(" ({:.0f} % on a device)", 100.0 * static_cast<double>(counters.device_hit) /
                                                   static_cast<double>(demanded));
  }
  if (bytes > 0.0) {
    text += fmt::format(", {:.2f} GB/s, waited {:.0f} %", bytes / seconds / 1e9,
                        static_cast<double>(counters.felt_wait_us) / seconds / 1e4);
  }
  if (counters.repaired_blocks > 0)
    text += fmt::format(", {} blocks repaired", counters.repaired_blocks);
  return text;
}

Result<std::unique_ptr<StatsFile>> StatsFile::create(const std::filesystem::path& path,
                                                     std::string expert_arithmetic) {
  std::FILE* const file = std::fopen(path.c_str(), "w");
  if (file == nullptr) {
    return make_error(ErrorCode::kIo, "{}: cannot be written: {}", path.string(),
                      std::generic_category().message(errno));
  }
  fmt::print(file, "{{\"tokens\": [");
  return std::unique_ptr<StatsFile>(new StatsFile(path, std::move(expert_arithmetic), file));
}

void StatsFile::on_step(const StepRecord& record) {
  JsonArray layers;
  for (std::size_t i = 0; i < record.layers.size(); ++i) {
    JsonObject layer;
    layer.add("layer", record.layers[i]);
    add_counters(layer, record.counters[i]);
    layers.push_back(std::move(layer).build());
    total_ += record.counters[i];
  }
  JsonObject step;
  step.add("rows", record.num_rows)
      .add("decode_rows", record.num_decode_rows)
      .add("us", record.us)
      .add("layers", JsonValue(std::move(layers)));
  fmt::print(file_, "{}{}", first_ ? "\n" : ",\n", to_json_text(std::move(step).build()));
  first_ = false;
  total_us_ += record.us;
  total_rows_ += record.num_rows;
}

Status StatsFile::close() {
  if (file_ == nullptr) return {};
  JsonObject total;
  total.add("rows", total_rows_).add("us", total_us_);
  add_counters(total, total_);
  fmt::print(file_, "\n], \"total\": {}", to_json_text(std::move(total).build()));
  if (!expert_arithmetic_.empty()) {
    fmt::print(file_, ",\n \"expert_arithmetic\": {}", to_json_text(JsonValue(expert_arithmetic_)));
  }
  fmt::print(file_, "}}\n");
  const bool failed = std::ferror(file_) != 0;
  const bool closed = std::fclose(std::exchange(file_, nullptr)) == 0;
  if (!failed && closed) return {};
  return make_error(ErrorCode::kIo, "{}: could not be written completely; is the disk full?",
                    path_.string());
}

}  // namespace stoker::tools
