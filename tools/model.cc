#include "tools/model.h"

#include <unistd.h>

#include <charconv>
#include <chrono>

#include "cpu/cpu_backend.h"
#include "cpu/isa.h"
#include "cpu/reference_backend.h"
#include "cpu/topology.h"
#include "gpu/factory.h"
#include "prefetch/resident_experts.h"
#include "storage/checkpoint.h"
#include "tools/progress_bar.h"

namespace stoker::tools {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

struct BackendChoice {
  std::unique_ptr<Team> team;
  std::unique_ptr<Backend> backend;
};

}  // namespace

Result<std::int64_t> parse_size(std::string_view text) {
  std::int64_t number = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  const std::string_view suffix(end, static_cast<std::size_t>(text.data() + text.size() - end));
  static constexpr std::pair<std::string_view, std::int64_t> kUnits[] = {{"", 1},
                                                                         {"B", 1},
                                                                         {"KB", 1000},
                                                                         {"KiB", 1 << 10},
                                                                         {"MB", 1000 * 1000},
                                                                         {"MiB", 1 << 20},
                                                                         {"GB", 1000000000},
                                                                         {"GiB", 1LL << 30},
                                                                         {"TB", 1000000000000},
                                                                         {"TiB", 1LL << 40}};
  for (const auto& [unit, factor] : kUnits) {
    if (error == std::errc() && suffix == unit && number >= 0 && number <= INT64_MAX / factor)
      return number * factor;
  }
  return make_error(ErrorCode::kInvalidArgument,
                    "\"{}\" is not a size; write it as 512MiB, 48GiB or 24GB", text);
}

Result<std::filesystem::path> model_directory(const std::string& model) {
  std::filesystem::path path = model;
  if (model.empty()) {
    path = STOKER_SOURCE_MODEL;
    std::error_code ignored;
    const std::filesystem::path program = std::filesystem::read_symlink("/proc/self/exe", ignored);
    // A build moved with its source tree: build/<preset>/stoker.
    const std::filesystem::path beside = program.parent_path() / "../../models/ember";
    if (!std::filesystem::exists(path / "config.json")) path = beside;
  }
  std::error_code error;
  if (!std::filesystem::is_directory(path, error)) {
    return make_error(ErrorCode::kNotFound,
                      "{} is not a directory; give a checkpoint directory with config.json and "
                      "*.safetensors",
                      path.string());
  }
  return path;
}

void add_model_argument(CLI::App& app, ModelFlags& flags, bool required) {
  app.add_option("MODEL", flags.model,
                 "Checkpoint directory (default: the model shipped with stoker)")
      ->required(required);
}

}  // namespace stoker::tools
