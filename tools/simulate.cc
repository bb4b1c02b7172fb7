// stoker simulate: routing traces, made, described, and replayed over hardware that is not there.

#include <fmt/format.h>

#include <memory>
#include <string>

#include "tools/command.h"
#include "tools/model.h"
#include "tools/routing_trace.h"
#include "tools/standard_io.h"
#include "tools/trace_generator.h"
#include "tools/trace_statistics.h"

namespace stoker::tools {
namespace {

struct SimulateFlags {
  std::string model;
  std::string trace;
  bool statistics = false;
  std::string make_trace;
  int tokens = 1024;
  int prefill = 0;
  std::uint64_t seed = 1;
};

Result<ModelConfig> load_config(const std::string& model) {
  if (std::filesystem::is_regular_file(model)) return ModelConfig::load(model);
  ASSIGN_OR_RETURN(const std::filesystem::path directory, model_directory(model));
  return ModelConfig::load(directory);
}

Status make_trace(const SimulateFlags& flags) {
  if (flags.prefill > flags.tokens) {
    return make_error(ErrorCode::kInvalidArgument, "--prefill {} of --tokens {}", flags.prefill,
                      flags.tokens);
  }
  ASSIGN_OR_RETURN(const ModelConfig config, load_config(flags.model));
  GeneratedTrace wanted;
  wanted.num_tokens = flags.tokens;
  wanted.num_prefill = flags.prefill;
  wanted.seed = flags.seed;
  ASSIGN_OR_RETURN(const RoutingTrace trace, generate_trace(config, wanted));
  return write_routing_trace(flags.make_trace, {&trace, 1});
}

Result<int> run(const SimulateFlags& flags) {
  if (!flags.make_trace.empty()) {
    RETURN_IF_ERROR(make_trace(flags));
    return 0;
  }
  ASSIGN_OR_RETURN(const RoutingTrace trace, read_routing_trace(flags.trace));
  RETURN_IF_ERROR(write_output(statistics_to_text(trace_statistics(trace))));
  return 0;
}

}  // namespace

Command add_simulate(CLI::App& program) {
  auto flags = std::make_shared<SimulateFlags>();
  CLI::App* app = program.add_subcommand(
      "simulate", "Replays a routing trace over a cache and a drive; describes and makes traces");
  app->add_option("MODEL", flags->model,
                  "Directory with a config.json, or the file itself (default: the model shipped "
                  "with stoker)");
  auto* trace = app->add_option("--trace", flags->trace, "Routing trace (--record-trace)");
  app->add_flag("--statistics", flags->statistics, "Say what the trace is like")->needs(trace);
  auto* make = app->add_option("--make-trace", flags->make_trace,
                               "Write a trace that behaves as published for trained models")
                   ->excludes(trace);
  app->add_option("--tokens", flags->tokens, "Tokens of the trace made (default 1024)")
      ->check(CLI::Range(1, 1 << 20))
      ->needs(make);
  app->add_option("--prefill", flags->prefill, "Of them, the first ones: a prompt (default 0)")
      ->check(CLI::NonNegativeNumber)
      ->needs(make);
  app->add_option("--seed", flags->seed, "Seed of the trace made (default 1)")->needs(make);
  return {app, [flags] { return run(*flags); }};
}

}  // namespace stoker::tools
