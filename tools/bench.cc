// stoker bench: what this machine does with a model, beside what its memory and drives could do.

#include "tools/bench_model.h"
#include "tools/command.h"

namespace stoker::tools {
namespace {

struct BenchFlags {
  std::string suite = "decode";
  ModelBenchFlags model;
};

Result<int> run(BenchFlags& flags) {
  flags.model.decode = flags.suite == "decode";
  return bench_model(flags.model);
}

}  // namespace

Command add_bench(CLI::App& program) {
  auto flags = std::make_shared<BenchFlags>();
  CLI::App* app = program.add_subcommand(
      "bench",
      "Measures decode or prefill speed of a model, and memory and drives in the same run");
  ModelBenchFlags& model = flags->model;
  add_model_argument(*app, model.model);
  app->add_option("--suite", flags->suite, "What to measure")
      ->check(CLI::IsMember({"decode", "prefill"}))
      ->capture_default_str();
  app->add_option("--tokens", model.tokens,
                  "Tokens of a round: decoded one by one, or prefilled at once")
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
  app->add_option("--rounds", model.rounds, "Rounds that count; the median is reported")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app->add_option("--warm-up", model.warm_up, "Rounds before those")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  app->add_option(
      "--force-routes", model.force_routes,
      "Take experts and guesses of this routing trace (or routes.json); the routers are "
      "computed all the same");
  app->add_flag("--compare-prefetch", model.compare_prefetch,
                "Every other round without prefetch; --rounds counts pairs");
  app->add_option("--modelled-drive", model.modelled_drive,
                  "Experts come from a drive of so many bytes a second (3GB) that costs no CPU and "
                  "delivers bytes of other experts: what is computed means nothing");
  app->add_flag("--json", model.json, "Print one JSON object");
  add_model_flags(*app, model.model);
  return {app, [flags] { return run(*flags); }};
}

}  // namespace stoker::tools
