// stoker bench: what this machine does with a model, beside what its memory and drives could do.

#include <fmt/format.h>

#include "gpu/factory.h"
#include "tools/backend_choice.h"
#include "tools/bench_gpu.h"
#include "tools/bench_io.h"
#include "tools/bench_kernels.h"
#include "tools/bench_model.h"
#include "tools/command.h"

namespace stoker::tools {
namespace {

struct BenchFlags {
  std::string suite = "decode";
  ModelBenchFlags model;
  std::string working_set;  // of suite kernels; a size
};

Result<int> run_device_kernels(const BenchFlags& flags) {
  ASSIGN_OR_RETURN(const BackendTypes types, backend_types(flags.model.model));
  CudaBackendOptions device;
  if (!flags.model.model.devices.empty()) device.device = flags.model.model.devices.front();
  device.activations = types.activations;
  device.kv_format = types.kv;
  ASSIGN_OR_RETURN(const std::unique_ptr<Backend> backend, make_cuda_backend(device));
  std::unique_ptr<Backend> fast;
  if (device.activations == DType::kBf16) {
    device.fast_experts = true;
    ASSIGN_OR_RETURN(fast, make_cuda_backend(device));
  }
  DeviceSuiteOptions options;
  options.rounds = flags.model.rounds;
  ASSIGN_OR_RETURN(const DeviceReport report, bench_device_kernels(*backend, fast.get(), options));
  fmt::print("{}", flags.model.json ? to_json(report).dump() + "\n" : to_text(report));
  return 0;
}

Result<int> run_kernels(const BenchFlags& flags) {
  if (flags.model.model.backend == "cuda") return run_device_kernels(flags);
  KernelSuiteOptions options;
  options.rounds = flags.model.rounds;
  if (flags.model.model.isa == "auto") {
    options.isas = available_isas();
    std::erase(options.isas, Isa::kAmx);  // runs the kernels of avx512
  } else {
    ASSIGN_OR_RETURN(const Isa isa, parse_isa(flags.model.model.isa));
    options.isas = {isa};
  }
  if (!flags.working_set.empty()) {
    ASSIGN_OR_RETURN(options.working_set_bytes, parse_size(flags.working_set), "--working-set");
  }
  ASSIGN_OR_RETURN(const KernelReport report, bench_kernels(options));
  fmt::print("{}", flags.model.json ? to_json(report).dump() + "\n" : to_text(report));
  return 0;
}

Result<int> run(BenchFlags& flags) {
  if (flags.suite == "kernels") return run_kernels(flags);
  if (flags.suite == "io")
    return bench_io({flags.model.model, flags.model.rounds, flags.model.json});
  flags.model.decode = flags.suite == "decode";
  return bench_model(flags.model);
}

}  // namespace

Command add_bench(CLI::App& program) {
  auto flags = std::make_shared<BenchFlags>();
  CLI::App* app = program.add_subcommand("bench",
                                         "Measures a model's decode or prefill speed, its drives, "
                                         "or the kernels alone, beside what the "
                                         "machine gives in the same run");
  ModelBenchFlags& model = flags->model;
  add_model_argument(*app, model.model);
  app->add_option("--suite", flags->suite,
                  "What to measure; kernels: those of one CPU thread, or of the GPU with --backend "
                  "cuda")
      ->check(CLI::IsMember({"decode", "prefill", "io", "kernels"}))
      ->capture_default_str();
  app->add_option("--tokens", model.tokens,
                  "Tokens of a round: decoded one by one, or prefilled at once")
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
  model.model.context_flag = {"--context"};  // and --tokens, which bench_model() adds
  app->add_option("--context", model.context,
                  "Tokens that are cached before a round begins; their keys are random, nothing is "
                  "computed for them")
      ->check(CLI::Range(0, 1 << 24));
  app->add_option("--rounds", model.rounds, "Rounds that count; medians are reported")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app->add_option("--warm-up", model.warm_up, "Rounds of a model before those")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  app->add_option(
      "--force-routes", model.force_routes,
      "Take experts and guesses of this routing trace (or routes.json); the routers are "
      "computed all the same");
  app->add_flag("--compare-prefetch", model.compare_prefetch,
                "Every other round without prefetch; --rounds counts pairs");
  app->add_flag("--compare-sites", model.compare_sites,
                "With --backend cuda: rounds in turn with --expert-site auto, host and device, and "
                "with a quarter, half and three quarters of the experts on the host; --rounds "
                "counts all six as one");
  app->add_option("--modelled-drive", model.modelled_drive,
                  "Experts come from a drive of so many bytes a second (3GB) that costs no CPU and "
                  "delivers bytes of other experts: what is computed means nothing");
  app->add_option("--working-set", flags->working_set,
                  "Suite kernels: size of the weights walked through (default 512MiB, or three "
                  "times the last cache)");
  app->add_flag("--json", model.json, "Print JSON");
  add_model_flags(*app, model.model);
  return {app, [flags] { return run(*flags); }};
}

}  // namespace stoker::tools
