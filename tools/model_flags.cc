#include "tools/model_flags.h"

#include <fmt/format.h>

#include <charconv>

#include "core/runtime/scheduler.h"
#include "tools/command.h"

namespace stoker::tools {
namespace {

// Whether it can be one is all that is asked here; the machine has its say when it is looked at.
std::string check_gpu(const std::string& text) {
  constexpr int kMostGpus = 1024;
  int gpu = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), gpu);
  if (error == std::errc() && end == text.data() + text.size() && gpu >= 0 && gpu < kMostGpus)
    return {};
  return fmt::format("\"{}\" is not the number of a GPU: a whole number from 0 to {}", text,
                     kMostGpus - 1);
}

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
    if (error != std::errc() || suffix != unit) continue;
    if (number == 0) {
      return make_error(ErrorCode::kUsage,
                        "\"{}\": nothing runs with a size of 0; leave the flag out for its default",
                        text);
    }
    if (number > 0 && number <= INT64_MAX / factor) return number * factor;
  }
  return make_error(ErrorCode::kUsage, "\"{}\" is not a size; write it as 512MiB, 48GiB or 24GB",
                    text);
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
                 "Directory of a checkpoint or of a packed model (default: the model shipped with "
                 "stoker)")
      ->required(required);
}

void add_model_flags(CLI::App& app, ModelFlags& flags) {
  app.add_option("--backend", flags.backend,
                 "Which code computes; auto: cuda where GPUs hold the model but for its routed "
                 "experts, else cpu")
      ->check(CLI::IsMember({"auto", "cpu", "cuda", "reference"}))
      ->capture_default_str();
  app.add_option("--isa", flags.isa, "Instruction set of the cpu backend's kernels")
      ->check(CLI::IsMember({"auto", "scalar", "avx2", "avx512", "amx"}))
      ->capture_default_str();
  app.add_option("--threads", flags.threads, "Compute threads (default: one per physical core)")
      ->check(CLI::Range(1, 1024));
  app.add_option(
      "--ram", flags.ram,
      "Memory that routed experts may take, e.g. 48GiB (default: what the machine has to "
      "spare)");
  as_list(app.add_option(
      "--store", flags.store,
      "Directories to take a packed model's expert files from, instead of its own; on "
      "several drives they are read together, and a file found twice is a mirror"));
  app.add_option("--io", flags.io, "How drives are read; auto: io_uring where it can be had")
      ->check(CLI::IsMember({"auto", "uring", "pread"}))
      ->capture_default_str();
  app.add_option("--direct", flags.direct, "Reads past the page cache; auto: where it can be had")
      ->check(CLI::IsMember({"auto", "on", "off"}))
      ->capture_default_str();
  app.add_option("--prefetch", flags.prefetch, "Read experts ahead while a drive is idle")
      ->check(CLI::IsMember({"on", "off"}))
      ->capture_default_str();
  as_list(app.add_option(
              "--devices", flags.devices,
              fmt::format("GPUs to run on, e.g. 0,1, numbered as `inspect --machine` lists them "
                          "(default: all, at most {}, that can be used and hold their share); "
                          "layers are shared out in this order, and a GPU may be named twice",
                          kMaxScheduledDevices)))
      ->check(check_gpu);
  app.add_option("--vram", flags.vram,
                 "Memory that each of them may take, e.g. 24GiB (default: what it has to spare); "
                 "what weights and caches leave holds the most used experts");
  app.add_option("--expert-site", flags.expert_site,
                 "Who computes experts that lie in no GPU's memory, in decode: auto: whoever is "
                 "done first; host: the CPU; device: the GPU of the layer; alternate: in turns, "
                 "for tests. Changes no result while --expert-arithmetic is defined")
      ->check(CLI::IsMember({"auto", "host", "device", "alternate"}))
      ->capture_default_str();
  app.add_option("--expert-arithmetic", flags.expert_arithmetic,
                 "How GPUs compute experts in decode; fast: on tensor cores (but for F32 and F16 "
                 "weights), with last bits that depend on where an expert is computed; not with "
                 "--activations f32")
      ->check(CLI::IsMember({"defined", "fast"}))
      ->capture_default_str();
  app.add_option("--prefill-rows", flags.prefill_rows,
                 "Prompt tokens computed in one sweep over the experts (default: what 1 GiB of "
                 "activations holds, at most 4096)")
      ->check(CLI::Range(1, 1 << 16));
  app.add_option("--activations", flags.activations,
                 "Activations between modules: bf16 (default) or f32")
      ->check(CLI::IsMember({"bf16", "f32"}));
  app.add_option(
         "--kv-cache", flags.kv_cache,
         "Cached keys: bf16 (default), f32, or fp8: the published form of 656 bytes a token "
         "and layer, 132 for the indexer; changes results slightly")
      ->check(CLI::IsMember({"bf16", "f32", "fp8"}));
  app.add_option("--stats", flags.stats, "Write what each step read and waited for, as JSON");
  app.add_option("--record-trace", flags.record_trace,
                 "Write the experts each token chose, and the guesses, for stoker simulate");
}

void add_context_flag(CLI::App& app, ModelFlags& flags) {
  flags.context_flag = {"--ctx"};
  app.add_option("--ctx", flags.ctx, "Tokens of context to reserve memory for")
      ->check(CLI::Range(1, 1 << 24))
      ->capture_default_str();
}

}  // namespace stoker::tools
