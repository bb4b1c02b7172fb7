// stoker simulate: routing traces, made, described, and replayed over hardware that is not there.

#include <fmt/format.h>

#include <cmath>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "core/base/file.h"
#include "prefetch/eviction_policy.h"
#include "tools/command.h"
#include "tools/expert_format.h"
#include "tools/expert_stats.h"
#include "tools/inspect_model.h"
#include "tools/json_object.h"
#include "tools/model.h"
#include "tools/modelled_experts.h"
#include "tools/routing_trace.h"
#include "tools/simulation.h"
#include "tools/standard_io.h"
#include "tools/trace_generator.h"
#include "tools/trace_statistics.h"

namespace stoker::tools {
namespace {

struct SimulateFlags {
  std::string model;
  ExpertFormatFlags experts;

  // Replaying. Lists are alternatives; every combination is run.
  std::string trace;
  std::vector<std::string> ram;
  std::vector<int> slots;
  std::vector<std::string> drives = {"7"};
  std::int64_t latency_us = 100;
  std::vector<std::string> policies = {SimulationOptions().policy};
  std::vector<std::string> prefetch = {"on"};
  std::vector<std::string> predictors = {"gate"};
  double memory = 40.0;
  std::vector<double> compute_us;
  std::string calibrate;
  std::int64_t skip = 0;
  bool json = false;
  std::string stats;

  bool statistics = false;

  // Making.
  std::string make_trace;
  int tokens = 1024;
  int prefill = 0;
  std::uint64_t seed = 1;
};

// One combination.
struct Setup {
  SimulationOptions options;
  std::string drive, prefetch, predictor;
};

bool is_file(const std::string& path) {
  std::error_code ignored;
  return std::filesystem::is_regular_file(path, ignored);
}

Result<ModelConfig> load_config(const std::string& model) {
  if (is_file(model)) return ModelConfig::load(model);
  ASSIGN_OR_RETURN(const std::filesystem::path directory, model_directory(model));
  return ModelConfig::load(directory);
}

Status make_trace(const SimulateFlags& flags, const ModelConfig& config) {
  if (flags.prefill > flags.tokens) {
    return make_error(ErrorCode::kUsage, "--prefill {} of --tokens {}", flags.prefill,
                      flags.tokens);
  }
  GeneratedTrace wanted;
  wanted.num_tokens = flags.tokens;
  wanted.num_prefill = flags.prefill;
  wanted.seed = flags.seed;
  ASSIGN_OR_RETURN(const RoutingTrace trace, generate_trace(config, wanted));
  return write_routing_trace(flags.make_trace, {&trace, 1});
}

// "7" or "2x7": GB/s, of one or several equal drives.
Result<std::vector<ModelledDrive>> parse_drives(const std::string& text, std::int64_t latency_us) {
  const std::size_t times = text.find('x');
  int count = 1;
  double speed = 0.0;
  try {
    std::size_t end = 0;
    const std::string last = times == std::string::npos ? text : text.substr(times + 1);
    if (times != std::string::npos) count = std::stoi(text.substr(0, times));
    speed = std::stod(last, &end);
    if (end != last.size()) speed = 0.0;
  } catch (const std::exception&) {
    speed = 0.0;
  }
  if (!(speed > 0.0) || !std::isfinite(speed) || count < 1 || count > 64) {
    return make_error(ErrorCode::kUsage, "--drive {}: write GB/s, 7, or 2x7 for two such drives",
                      text);
  }
  ModelledDrive drive;
  drive.bytes_per_second = speed * 1e9;
  drive.latency_us = latency_us;
  return std::vector<ModelledDrive>(static_cast<std::size_t>(count), drive);
}

Predictor predictor_named(const std::string& name) {
  return name == "perfect"    ? Predictor::kPerfect
         : name == "previous" ? Predictor::kPrevious
                              : Predictor::kGate;
}

// How the model's experts are stored: as the flags say, else as its files do; as published where
// there is only a config.json.
Result<QuantSpec> experts_of(const SimulateFlags& flags, const ModelConfig& config) {
  if (!flags.experts.experts.empty()) return expert_spec_of(flags.experts);
  QuantSpec published;
  published.format = config.stored_format;
  if (is_file(flags.model)) return published;
  ASSIGN_OR_RETURN(const std::filesystem::path directory, model_directory(flags.model));
  const Result<ModelReport> report = inspect_model(directory);
  if (report.ok()) return report->expert_spec;
  if (report.error().code() == ErrorCode::kNotFound) return published;
  return report.error();
}

Result<ComputeCosts> costs_of(const SimulateFlags& flags, const ModelConfig& config,
                              QuantSpec experts) {
  ComputeCosts costs = costs_at_bandwidth(config, experts, flags.memory * 1e9);
  if (!flags.compute_us.empty()) {
    const double factor = flags.compute_us[0] / (costs.layer_us + costs.shared_us);
    costs.layer_us *= factor;
    costs.shared_us *= factor;
    costs.expert_us = flags.compute_us[1];
    if (flags.compute_us.size() > 2) {
      const double step_us = std::exchange(costs.step_us, flags.compute_us[2]);
      if (step_us > 0.0) costs.head_us *= costs.step_us / step_us;
    }
  }
  if (flags.calibrate.empty()) return costs;
  constexpr std::size_t kMaxStats = std::size_t{1} << 30;
  ASSIGN_OR_RETURN(const std::string json, read_small_file(flags.calibrate, kMaxStats));
  ASSIGN_OR_RETURN(costs, calibrated(costs, config, json), "{}", flags.calibrate);
  return costs;
}

Result<std::vector<int>> slots_of(const SimulateFlags& flags, const ModelConfig& config,
                                  std::int64_t slot_bytes) {
  const auto all = static_cast<std::int64_t>(moe_layers(config).size()) * config.n_routed_experts;
  std::vector<int> slots = flags.slots;
  for (const std::string& size : flags.ram) {
    ASSIGN_OR_RETURN(const std::int64_t bytes, parse_size(size));
    slots.push_back(static_cast<int>(std::min(bytes / slot_bytes, all)));
  }
  if (slots.empty()) {
    constexpr double kShares[] = {0.10, 0.25, 0.40};
    for (const double share : kShares)
      slots.push_back(static_cast<int>(std::llround(share * static_cast<double>(all))));
  }
  return slots;
}

// Every setup with every value: apply(copy, value) says whether the two go together.
template <typename Value, typename Apply>
void expand(std::vector<Setup>& setups, const std::vector<Value>& values, const Apply& apply) {
  std::vector<Setup> all;
  for (const Setup& setup : setups) {
    for (const Value& value : values) {
      Setup copy = setup;
      if (apply(copy, value)) all.push_back(std::move(copy));
    }
  }
  setups = std::move(all);
}

Result<std::vector<Setup>> setups_of(const SimulateFlags& flags, const std::vector<int>& slots,
                                     const ComputeCosts& costs) {
  std::vector<Setup> setups(1);
  setups[0].options.costs = costs;
  setups[0].options.skipped_tokens = flags.skip;
  Status bad_drive;
  expand(setups, flags.drives, [&](Setup& setup, const std::string& drive) {
    Result<std::vector<ModelledDrive>> drives = parse_drives(drive, flags.latency_us);
    if (!drives.ok()) {
      bad_drive = drives.error();
      return false;
    }
    setup.drive = drive;
    setup.options.drives = *std::move(drives);
    return true;
  });
  RETURN_IF_ERROR(std::move(bad_drive));
  expand(setups, slots, [](Setup& setup, int count) {
    setup.options.num_slots = count;
    return true;
  });
  expand(setups, flags.policies, [](Setup& setup, const std::string& policy) {
    setup.options.policy = policy;
    return true;
  });
  expand(setups, flags.prefetch, [](Setup& setup, const std::string& prefetch) {
    setup.prefetch = prefetch;
    setup.options.prefetch.enabled = prefetch != "off";
    setup.options.prefetch.adaptive = prefetch == "on";
    return true;
  });
  expand(setups, flags.predictors, [&](Setup& setup, const std::string& predictor) {
    const bool heard = setup.options.prefetch.enabled;
    setup.predictor = heard ? predictor : "none";
    return heard || predictor == flags.predictors.front();
  });
  return setups;
}

double per_second(std::int64_t count, double us) {
  return us > 0.0 ? 1e6 * static_cast<double>(count) / us : 0.0;
}

JsonValue to_json(const SimulatedSteps& steps) {
  JsonObject object;
  object.add("steps", steps.num_steps)
      .add("tokens", steps.num_tokens)
      .add("us", steps.us)
      .add("tok_s", per_second(steps.num_tokens, static_cast<double>(steps.us)));
  add_counters(object, steps.counters);
  object.add("belady_reads", steps.fewest_reads)
      .add("bound_us", steps.least_us)
      .add("bound_tok_s", per_second(steps.num_tokens, steps.least_us));
  return std::move(object).build();
}

std::string to_json_line(const Setup& setup, const Simulated& result) {
  JsonObject object;
  object.add("slots", setup.options.num_slots)
      .add("drive", setup.drive)
      .add("policy", setup.options.policy)
      .add("prefetch", setup.prefetch)
      .add("predictor", setup.predictor)
      .add("prefill", to_json(result.prefill))
      .add("decode", to_json(result.decode));
  return to_json_text(std::move(object).build()) + "\n";
}

std::string heading() {
  return fmt::format(
      "{:>6} {:>6} {:<7} {:<8} {:<8} {:<7} {:>5} {:>5} {:>5} {:>6} {:>8} {:>8} {:>8} {:>6} {:>7} "
      "{:>7}\n",
      "slots", "drive", "policy", "prefetch", "guesses", "part", "hit", "late", "miss", "Belady",
      "demanded", "guessed", "wasted", "wait", "tok/s", "bound");
}

std::string to_line(const Setup& setup, const char* part, const SimulatedSteps& steps) {
  if (steps.num_steps == 0) return {};
  const auto share = [&](std::int64_t count) {
    return 100.0 * static_cast<double>(count) /
           static_cast<double>(std::max<std::int64_t>(1, steps.num_uses()));
  };
  const auto per_token = [&](std::int64_t bytes) {
    return static_cast<double>(bytes) / static_cast<double>(steps.num_tokens) / 1e6;
  };
  const LayerCounters& counters = steps.counters;
  return fmt::format(
      "{:>6} {:>6} {:<7} {:<8} {:<8} {:<7} {:>4.1f}% {:>4.1f}% {:>4.1f}% {:>5.1f}% {:>6.1f}MB "
      "{:>6.1f}MB "
      "{:>6.1f}MB {:>5.1f}% {:>7.3f} {:>7.3f}\n",
      setup.options.num_slots, setup.drive, setup.options.policy, setup.prefetch, setup.predictor,
      part, share(counters.hit), share(counters.late), share(counters.miss),
      share(steps.num_uses() - steps.fewest_reads), per_token(counters.demand_bytes),
      per_token(counters.prefetch_used_bytes), per_token(counters.prefetch_wasted_bytes),
      100.0 * static_cast<double>(counters.felt_wait_us) /
          static_cast<double>(std::max<std::int64_t>(1, steps.us)),
      per_second(steps.num_tokens, static_cast<double>(steps.us)),
      per_second(steps.num_tokens, steps.least_us));
}

Status replay(const SimulateFlags& flags, const ModelConfig& config, const RoutingTrace& trace) {
  RETURN_IF_ERROR(check_trace(trace, config), "{}", flags.trace);
  ASSIGN_OR_RETURN(const QuantSpec experts, experts_of(flags, config));
  const std::int64_t slot_bytes =
      ModelledExperts(config, experts).expert_bytes(trace.layers.front());
  ASSIGN_OR_RETURN(const ComputeCosts costs, costs_of(flags, config, experts));
  ASSIGN_OR_RETURN(const std::vector<int> slots, slots_of(flags, config, slot_bytes));
  ASSIGN_OR_RETURN(const std::vector<Setup> setups, setups_of(flags, slots, costs));
  if (!flags.stats.empty() && setups.size() > 1) {
    return make_error(ErrorCode::kUsage, "--stats is of one run, and these are {}", setups.size());
  }
  std::unique_ptr<StatsFile> stats;
  if (!flags.stats.empty()) {
    ASSIGN_OR_RETURN(stats, StatsFile::create(flags.stats));
  }
  if (!flags.json) {
    RETURN_IF_ERROR(write_output(fmt::format(
        "experts of {:.2f} MB; a token computes for {:.1f} ms: {:.0f} us a step, {:.0f} + {:.0f} a "
        "layer, {:.0f} an expert\nbytes per token; Belady and bound: what no cache and no "
        "prefetcher can beat\n\n{}",
        static_cast<double>(slot_bytes) / 1e6,
        costs.token_us(trace.num_layers(), trace.top_k) / 1e3, costs.step_us, costs.layer_us,
        costs.shared_us, costs.expert_us, heading())));
  }
  for (const Setup& setup : setups) {
    const RoutingTrace guessed = with_predictor(trace, predictor_named(setup.predictor));
    ASSIGN_OR_RETURN(const Simulated result,
                     simulate(config, experts, guessed, setup.options, stats.get()));
    RETURN_IF_ERROR(write_output(flags.json ? to_json_line(setup, result)
                                            : to_line(setup, "prefill", result.prefill) +
                                                  to_line(setup, "decode", result.decode)));
  }
  return stats ? stats->close() : Status();
}

Result<int> run(const SimulateFlags& flags) {
  if (flags.make_trace.empty() && flags.trace.empty()) {
    return Error(ErrorCode::kUsage, "give --trace FILE, or --make-trace FILE");
  }
  std::optional<RoutingTrace> trace;
  if (!flags.trace.empty()) {
    ASSIGN_OR_RETURN(trace, read_routing_trace(flags.trace));
  }
  if (flags.statistics) {
    RETURN_IF_ERROR(write_output(statistics_to_text(trace_statistics(*trace))));
    return 0;
  }
  ASSIGN_OR_RETURN(const ModelConfig config, load_config(flags.model));
  RETURN_IF_ERROR(trace ? replay(flags, config, *trace) : make_trace(flags, config));
  return 0;
}

void add_replay_flags(CLI::App& app, SimulateFlags& flags, CLI::Option* trace) {
  as_list(app.add_option("--ram", flags.ram,
                         "Sizes of the expert cache (default: of 10, 25 and 40 % of all experts)"))
      ->needs(trace);
  as_list(app.add_option("--slots", flags.slots, "The same, in experts"))
      ->check(CLI::PositiveNumber)
      ->needs(trace);
  as_list(
      app.add_option("--drive", flags.drives, "GB/s of the drive, or 2x7 for two of 7 (default 7)"))
      ->needs(trace);
  app.add_option("--latency-us", flags.latency_us, "Of a read (default 100)")
      ->check(CLI::NonNegativeNumber);
  std::vector<std::string> policies;
  for (const std::string_view name : eviction_policy_names()) policies.emplace_back(name);
  as_list(app.add_option("--policy", flags.policies,
                         fmt::format("Who is evicted (default {})", flags.policies.front())))
      ->check(CLI::IsMember(policies));
  as_list(app.add_option("--prefetch", flags.prefetch,
                         "Whether to read ahead; always: even where it does not pay (default on)"))
      ->check(CLI::IsMember({"on", "off", "always"}));
  as_list(app.add_option(
              "--predictor", flags.predictors,
              "Whose guesses: the trace's, the token before, or what will come (default gate)"))
      ->check(CLI::IsMember({"gate", "previous", "perfect"}));
  app.add_option("--memory", flags.memory,
                 "GB/s at which weights are read from memory, which is what computing costs "
                 "(default 40)")
      ->check(CLI::PositiveNumber);
  app.add_option("--compute-us", flags.compute_us,
                 "LAYER,EXPERT[,STEP]: what a MoE layer without its experts, an expert, and the "
                 "rest of a step cost instead")
      ->delimiter(',')
      ->expected(2, 3)
      ->check(CLI::NonNegativeNumber);
  app.add_option("--calibrate", flags.calibrate, "Scale these costs to a run's --stats file");
  app.add_option("--skip", flags.skip, "Leave the first tokens out of the results (default 0)")
      ->check(CLI::NonNegativeNumber);
  app.add_flag("--json", flags.json, "A JSON object a line");
  app.add_option("--stats", flags.stats, "Write the counters of every step, as a run does");
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
  add_replay_flags(*app, *flags, trace);
  add_expert_format_flags(*app, flags->experts,
                          "How experts are stored (default: as the model's files say)", false);
  app->add_flag("--statistics", flags->statistics, "Only say what the trace is like")->needs(trace);
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
