// stoker bench: what this machine does with a model, beside what its memory could do.

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <nlohmann/json.hpp>

#include "cpu/read_bandwidth.h"
#include "tools/bench_kernels.h"
#include "tools/command.h"
#include "tools/model.h"

namespace stoker::tools {
namespace {

using Clock = std::chrono::steady_clock;

struct BenchFlags {
  ModelFlags model;
  std::string suite = "decode";
  int tokens = 64;
  int rounds = 5;
  std::string working_set;
  bool json = false;
};

struct Timing {
  double tokens_per_second = 0.0;  // median over the rounds
  double slowest = 0.0, fastest = 0.0;
};

constexpr std::int64_t kBandwidthBytes = std::int64_t{1} << 30;
constexpr int kBandwidthRounds = 5;

Timing summarise(std::vector<double> rates) {
  std::sort(rates.begin(), rates.end());
  return {rates[rates.size() / 2], rates.front(), rates.back()};
}

// Token ids that differ from each other and route widely.
std::vector<TokenId> bench_tokens(int count, int vocab_size) {
  std::vector<TokenId> tokens(static_cast<std::size_t>(count));
  for (int i = 0; i < count; ++i) tokens[i] = static_cast<TokenId>((i * 7919LL + 13) % vocab_size);
  return tokens;
}

// Stored bytes of the weights that one token reads in decode, the row of the embedding left out.
std::int64_t weight_bytes_per_token(const LoadedModel& model) {
  const auto of = [&](TensorCategory category) { return model.bytes[static_cast<int>(category)]; };
  const ModelConfig& config = model.engine->config();
  std::int64_t total = of(TensorCategory::kAttention) + of(TensorCategory::kIndexer) +
                       of(TensorCategory::kNorms) + of(TensorCategory::kDenseFfn) +
                       of(TensorCategory::kRouter) + of(TensorCategory::kSharedExperts) +
                       of(TensorCategory::kHead);
  if (config.n_routed_experts > 0) {
    total +=
        of(TensorCategory::kRoutedExperts) / config.n_routed_experts * config.num_experts_per_tok;
  }
  return total;
}

Result<double> feed(Runner& runner, KvSequence& kv, std::span<const TokenId> tokens,
                    Purpose purpose) {
  const Segment segment{&kv, 0, static_cast<int>(tokens.size()), purpose, Logits::kLast};
  const Clock::time_point start = Clock::now();
  ASSIGN_OR_RETURN(const ForwardPtr forward, runner.run({tokens, {&segment, 1}}));
  return std::chrono::duration<double>(Clock::now() - start).count();
}

Result<Timing> time_prefill(Runner& runner, const BenchFlags& flags,
                            std::span<const TokenId> tokens) {
  std::vector<double> rates;
  for (int round = -1; round < flags.rounds; ++round) {  // round -1 warms up
    KvSequence kv(runner.kv_pool());
    ASSIGN_OR_RETURN(const double seconds, feed(runner, kv, tokens, Purpose::kPrefill));
    if (round >= 0) rates.push_back(static_cast<double>(tokens.size()) / seconds);
  }
  return summarise(std::move(rates));
}

Result<Timing> time_decode(Runner& runner, const BenchFlags& flags,
                           std::span<const TokenId> tokens) {
  std::vector<double> rates;
  for (int round = -1; round < flags.rounds; ++round) {
    KvSequence kv(runner.kv_pool());
    double seconds = 0.0;
    for (std::size_t i = 0; i < tokens.size(); ++i) {
      ASSIGN_OR_RETURN(const double step, feed(runner, kv, tokens.subspan(i, 1), Purpose::kDecode));
      seconds += step;
    }
    if (round >= 0) rates.push_back(static_cast<double>(tokens.size()) / seconds);
  }
  return summarise(std::move(rates));
}

Result<int> run_kernels(const BenchFlags& flags) {
  KernelSuiteOptions options;
  options.rounds = flags.rounds;
  if (flags.model.isa == "auto") {
    options.isas = available_isas();
    std::erase(options.isas, Isa::kAmx);  // runs the kernels of avx512
  } else {
    ASSIGN_OR_RETURN(const Isa isa, parse_isa(flags.model.isa));
    options.isas = {isa};
  }
  if (!flags.working_set.empty()) {
    ASSIGN_OR_RETURN(options.working_set_bytes, parse_size(flags.working_set), "--working-set");
  }
  ASSIGN_OR_RETURN(const KernelReport report, bench_kernels(options));
  fmt::print("{}", flags.json ? to_json(report).dump() + "\n" : to_text(report));
  return 0;
}

Result<int> run(BenchFlags& flags) {
  if (flags.suite == "kernels") return run_kernels(flags);
  flags.model.ctx = flags.tokens;
  ASSIGN_OR_RETURN(const LoadedModel model, load_model(flags.model, {flags.tokens, 1}));
  const std::vector<TokenId> tokens = bench_tokens(flags.tokens, model.engine->config().vocab_size);
  const bool decode = flags.suite == "decode";
  ASSIGN_OR_RETURN(const Timing timing, decode ? time_decode(*model.runner, flags, tokens)
                                               : time_prefill(*model.runner, flags, tokens));
  nlohmann::ordered_json result = {{"suite", flags.suite},
                                   {"model", model.directory.string()},
                                   {"tokens", flags.tokens},
                                   {"threads", model.team ? model.team->num_threads() : 1},
                                   {"tok_s", timing.tokens_per_second},
                                   {"tok_s_slowest", timing.slowest},
                                   {"tok_s_fastest", timing.fastest}};
  if (decode && model.team) {
    const std::int64_t bytes = weight_bytes_per_token(model);
    const double achieved = static_cast<double>(bytes) * timing.tokens_per_second;
    const double peak = measure_read_bandwidth(*model.team, kBandwidthBytes, kBandwidthRounds);
    result["weight_bytes_per_token"] = bytes;
    result["gb_s"] = achieved / 1e9;
    result["read_bandwidth_gb_s"] = peak / 1e9;
    result["share_of_read_bandwidth"] = peak > 0.0 ? achieved / peak : 0.0;
  }
  if (flags.json) {
    fmt::print("{}\n", result.dump());
    return 0;
  }
  for (const auto& [name, value] : result.items()) {
    fmt::print("{:24} {}\n", name,
               value.is_number_float() ? fmt::format("{:.3f}", value.get<double>())
               : value.is_string()     ? value.get<std::string>()
                                       : value.dump());
  }
  return 0;
}

}  // namespace

Command add_bench(CLI::App& program) {
  auto flags = std::make_shared<BenchFlags>();
  CLI::App* app = program.add_subcommand(
      "bench",
      "Measures decode or prefill speed of a model, or the kernels alone, beside what the "
      "machine gives in the same run");
  add_model_argument(*app, flags->model);
  app->add_option("--suite", flags->suite, "What to measure")
      ->check(CLI::IsMember({"decode", "prefill", "kernels"}))
      ->capture_default_str();
  app->add_option("--tokens", flags->tokens,
                  "Tokens of a round: decoded one by one, or prefilled at once")
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
  app->add_option("--rounds", flags->rounds, "Rounds after one to warm up; the median is reported")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app->add_option("--working-set", flags->working_set,
                  "Suite kernels: size of the weights walked through (default 512MiB, or three "
                  "times the last cache)");
  app->add_flag("--json", flags->json, "Print one JSON object");
  add_model_flags(*app, flags->model);
  return {app, [flags] { return run(*flags); }};
}

}  // namespace stoker::tools
