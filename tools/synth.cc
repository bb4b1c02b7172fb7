// stoker synth: a full-width slice of a model with random weights, for benchmarks.

#include "storage/synth.h"

#include <memory>
#include <string>

#include "core/base/file.h"
#include "core/model/model_config.h"
#include "tools/command.h"
#include "tools/expert_format.h"
#include "tools/progress_bar.h"

namespace stoker::tools {
namespace {

struct SynthFlags {
  std::string config, out;
  ExpertFormatFlags format;
  storage::SynthOptions options;
};

Result<int> run(const SynthFlags& flags) {
  storage::SynthOptions options = flags.options;
  ASSIGN_OR_RETURN(options.experts, expert_spec_of(flags.format));
  std::filesystem::path path = flags.config;
  std::error_code ignored;
  if (std::filesystem::is_directory(path, ignored)) path /= "config.json";
  ASSIGN_OR_RETURN(const std::string text, read_small_file(path, ModelConfig::kMaxBytes));
  ASSIGN_OR_RETURN(const std::string slice, storage::slice_config(text, options), "{}",
                   path.string());
  ProgressBar progress("writing", ProgressBar::Unit::kBytes);
  RETURN_IF_ERROR(storage::synthesize(slice, options, flags.out, progress.callback()));
  return 0;
}

}  // namespace

Command add_synth(CLI::App& program) {
  auto flags = std::make_shared<SynthFlags>();
  flags->format.experts = "int4";
  CLI::App* app = program.add_subcommand(
      "synth",
      "Writes a full-width slice of a model as a store: true dimensions, random weights, for "
      "benchmarks. The text it generates means nothing");
  app->add_option("--config", flags->config, "config.json of the model, or a directory with one")
      ->required();
  app->add_option("--layers", flags->options.moe_layers,
                  "Layers with experts, after at most one dense layer")
      ->required()
      ->check(CLI::Range(1, 1000));
  app->add_option("--out", flags->out, "Directory of the store; must not be there")->required();
  add_expert_format_flags(*app, flags->format, "Format of the routed experts (default: int4)",
                          false);
  app->add_option("--vocab", flags->options.vocab_size,
                  "Words of the vocabulary (default: the model's)")
      ->check(CLI::Range(2, 1 << 24));
  app->add_option("--seed", flags->options.seed, "The same seed gives the same bytes")
      ->capture_default_str();
  app->add_option("--files", flags->options.num_files,
                  "Files that the experts are dealt to, so that several drives can hold some")
      ->check(CLI::Range(1, 999))
      ->capture_default_str();
  return {app, [flags] { return run(*flags); }};
}

}  // namespace stoker::tools
