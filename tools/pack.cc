// stoker pack: from a published checkpoint to a packed store.

#include <fmt/format.h>
#include <unistd.h>

#include <chrono>
#include <memory>
#include <string>

#include "core/model/model_config.h"
#include "storage/checkpoint.h"
#include "storage/packer.h"
#include "storage/store.h"
#include "tools/command.h"
#include "tools/expert_format.h"
#include "tools/notice.h"
#include "tools/progress_bar.h"

namespace stoker::tools {
namespace {

struct PackFlags {
  std::string checkpoint, out;
  ExpertFormatFlags format;
  int num_files = 1;
};

Result<storage::PackOptions> options_of(const PackFlags& flags,
                                        const storage::Checkpoint& checkpoint) {
  storage::PackOptions options;
  options.num_files = flags.num_files;
  ExpertFormatFlags format = flags.format;
  if (format.experts == "stored") {
    if (format.group == 0) return options;
    return make_error(ErrorCode::kUsage,
                      "--experts stored keeps what is there; --group "
                      "has no meaning for it");
  }
  const std::vector<int> layers = checkpoint.expert_layers();
  if (format.experts.empty() && !layers.empty()) {
    const QuantSpec stored = checkpoint.expert_spec(layers.front());
    format.experts = stored.format == QuantFormat::kF8E4m3B128 ? "fp8" : "int8";
  }
  if (!layers.empty()) {
    ASSIGN_OR_RETURN(options.experts, expert_spec_of(format));
  }
  return options;
}

Result<int> run(const PackFlags& flags) {
  using Clock = std::chrono::steady_clock;
  const std::filesystem::path dir = flags.checkpoint;
  if (storage::Store::is_store(dir)) {
    return make_error(ErrorCode::kInvalidArgument,
                      "{}: is a packed store; pack takes a published checkpoint", dir.string());
  }
  ASSIGN_OR_RETURN(const ModelConfig config, ModelConfig::load(dir));
  ASSIGN_OR_RETURN(const auto checkpoint, storage::Checkpoint::open(dir, config));
  for (const std::string& notice : checkpoint->notices()) say_notice(notice);
  ASSIGN_OR_RETURN(const storage::PackOptions options, options_of(flags, *checkpoint));
  const Clock::time_point start = Clock::now();
  {
    ProgressBar writing("packing", ProgressBar::Unit::kBytes);
    ProgressBar verifying("verifying", ProgressBar::Unit::kBytes);
    storage::StoreWriteOptions write;
    write.writing = writing.callback();
    write.verifying = verifying.callback();
    RETURN_IF_ERROR(storage::pack(dir, *checkpoint, flags.out, options, write));
  }
  if (isatty(STDERR_FILENO) == 1) {
    fmt::print(stderr, "{}: packed and verified in {:.0f} s\n", flags.out,
               std::chrono::duration<double>(Clock::now() - start).count());
  }
  return 0;
}

}  // namespace

Command add_pack(CLI::App& program) {
  auto flags = std::make_shared<PackFlags>();
  CLI::App* app = program.add_subcommand(
      "pack",
      "Makes a store from a published checkpoint: experts in the form that drives and kernels like "
      "best, every block with a checksum. Interrupted in any way, the same command goes on where "
      "it was");
  app->add_option("CHECKPOINT", flags->checkpoint, "Checkpoint directory")->required();
  app->add_option("--out", flags->out,
                  "Directory of the store; appears when it is complete and verified")
      ->required();
  add_expert_format_flags(*app, flags->format,
                          "Format of the routed experts: fp8 as published (default for FP8 "
                          "checkpoints), int8 (default for others), int4, or stored: whatever the "
                          "checkpoint has",
                          true);
  app->add_option("--files", flags->num_files,
                  "Files that the experts are dealt to, so that several drives can hold some")
      ->check(CLI::Range(1, 999))
      ->capture_default_str();
  return {app, [flags] { return run(*flags); }};
}

}  // namespace stoker::tools
