#include "tools/bench_model.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <iterator>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <utility>
#include <vector>

#include "core/base/median.h"
#include "cpu/read_bandwidth.h"
#include "tools/drive_probe.h"
#include "tools/eval_files.h"
#include "tools/gpu_placement.h"
#include "tools/hook_chain.h"
#include "tools/progress_bar.h"
#include "tools/random_context.h"
#include "tools/run_record.h"
#include "tools/trace_hooks.h"

namespace stoker::tools {
namespace {

using Clock = std::chrono::steady_clock;
using Json = nlohmann::ordered_json;

constexpr std::int64_t kBandwidthBytes = std::int64_t{1} << 30;
constexpr int kBandwidthRounds = 5;
constexpr double kProbeSeconds = 0.8;  // before and after every round

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
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

// Counts the experts that passes use.
class DistinctExperts final : public StepHooks {
 public:
  void clear() { seen_.clear(); }
  std::int64_t bytes(const ExpertSource& source) const {
    std::int64_t total = 0;
    for (const auto& [layer, expert] : seen_) total += source.expert_bytes(layer);
    return total;
  }
  void on_routes(int layer, const RouteMailbox& routes) override {
    for (const std::int32_t expert : routes.experts) seen_.emplace(layer, expert);
  }

 private:
  std::set<std::pair<int, int>> seen_;
};

// How rounds differ. The first of a bench is what is measured, the others are beside it.
struct Variant {
  const char* name = "";
  bool prefetch = true;
  TierRule rule = TierRule::kSchedule;
  double host_share = 0.0;  // of kShare
};

// What one round did.
struct Round {
  std::size_t variant = 0;
  double seconds = 0.0;
  double io_cpu_seconds = 0.0;
  std::int64_t bytes_read = 0, distinct_bytes = 0;
  std::int64_t devices_us = 0, drives_us = 0;  // that they were busy, on average
  double drive_bytes_per_second = 0.0;         // measured around the round; 0: not measured
  LayerCounters experts;
};

class ModelBench {
 public:
  ModelBench(const ModelBenchFlags& flags, LoadedModel& model) : flags_(flags), model_(model) {}

  Status prepare();
  Status choose_variants();
  Status run();
  Json report() const;

 private:
  Result<Round> run_round(int number);
  Status feed(std::span<const TokenId> tokens, Purpose purpose);
  std::int64_t bytes_read() const {
    const ExpertReader* const reader = model_.paging.reader();
    return reader != nullptr ? reader->load().bytes_read : 0;
  }
  std::int64_t drives_us() const {
    if (model_.paging.reader() == nullptr) return 0;
    const ReaderLoad load = model_.paging.reader()->load();
    return load.busy_us / std::max(load.num_drives, 1);
  }
  std::int64_t devices_us() const {
    std::int64_t total = 0, count = 0;
    for (const Backend* const backend : model_.engine->placement().backends()) {
      if (backend->device() == kHost) continue;
      total += backend->busy_us();
      ++count;
    }
    return count > 0 ? total / count : 0;
  }
  Result<double> probe_drive() {
    if (!probe_) return 0.0;
    return probe_->measure(kProbeSeconds);
  }
  std::vector<Round> rounds_of(std::size_t variant) const;
  void add_expert_figures(const std::vector<Round>& rounds, Json& json) const;
  void add_tier_figures(const std::vector<Round>& rounds, Json& json) const;
  void add_drive_figures(const std::vector<Round>& rounds, Json& json) const;

  const ModelBenchFlags& flags_;
  LoadedModel& model_;
  std::vector<TokenId> tokens_;
  std::optional<TraceForcer> forcer_;
  DistinctExperts distinct_;
  std::optional<HookChain> hooks_;
  std::unique_ptr<ExpertReader> probe_reader_;
  std::optional<DriveProbe> probe_;
  std::optional<KvSequence> kv_;
  std::vector<Variant> variants_;
  std::vector<Round> rounds_;
};

Status ModelBench::prepare() {
  RETURN_IF_ERROR(choose_variants());
  const ModelConfig& config = model_.engine->config();
  tokens_ = bench_tokens(flags_.tokens, config.vocab_size);
  if (!flags_.force_routes.empty()) {
    ASSIGN_OR_RETURN(RoutingTrace trace, read_routes(flags_.force_routes, config, 0));
    forcer_.emplace(std::move(trace));
  }
  hooks_.emplace(std::initializer_list<StepHooks*>{&distinct_, forcer_ ? &*forcer_ : nullptr,
                                                   model_.record->recorder()});
  model_.runner->set_hooks(&*hooks_);
  const bool paged =
      model_.experts != nullptr && model_.paging.arena()->num_slots() < model_.num_experts;
  if (paged && flags_.modelled_drive.empty()) {
    ASSIGN_OR_RETURN(probe_reader_, open_second_reader(*model_.source, flags_.model));
    probe_.emplace(*model_.source, *probe_reader_, moe_layers(config), config.n_routed_experts);
  }
  kv_.emplace(model_.runner->kv_pool());
  RETURN_IF_ERROR(append_random_context(*model_.runner, *kv_, flags_.context));
  if (model_.experts != nullptr && !paged) {  // a model that fits: measured when it is all there
    while (model_.experts->warming_up()) {
      model_.experts->pump();
      model_.experts->wait(std::chrono::milliseconds(10));
    }
  }
  return {};
}

Status ModelBench::choose_variants() {
  if (flags_.compare_sites && model_.tiers == nullptr) {
    return make_error(ErrorCode::kInvalidArgument,
                      "--compare-sites needs --backend cuda and a model with routed experts");
  }
  variants_ = {{.prefetch = flags_.model.prefetch == "on"}};
  if (flags_.compare_prefetch) {
    variants_ = {{.prefetch = true}, {.name = "prefetch_off", .prefetch = false}};
  } else if (flags_.compare_sites) {
    variants_.push_back({.name = "site_host", .rule = TierRule::kHost});
    variants_.push_back({.name = "site_device", .rule = TierRule::kDevice});
    variants_.push_back({.name = "host_1_4", .rule = TierRule::kShare, .host_share = 0.25});
    variants_.push_back({.name = "host_1_2", .rule = TierRule::kShare, .host_share = 0.5});
    variants_.push_back({.name = "host_3_4", .rule = TierRule::kShare, .host_share = 0.75});
  }
  return {};
}

Status ModelBench::feed(std::span<const TokenId> tokens, Purpose purpose) {
  const Segment segment{&*kv_, 0, static_cast<int>(tokens.size()), purpose, Logits::kLast};
  ASSIGN_OR_RETURN(const ForwardPtr forward, model_.runner->run({tokens, {&segment, 1}}));
  return {};
}

Result<Round> ModelBench::run_round(int number) {
  Round round;
  round.variant = static_cast<std::size_t>(number) % variants_.size();
  const Variant& variant = variants_[round.variant];
  if (flags_.compare_prefetch && model_.experts != nullptr) {
    model_.experts->set_prefetch(variant.prefetch);
  }
  if (flags_.compare_sites) model_.tiers->set_rule(variant.rule, variant.host_share);
  kv_->rewind(flags_.context);
  distinct_.clear();
  ASSIGN_OR_RETURN(const double before, probe_drive());
  const LayerCounters experts = model_.runner->expert_counters();
  const std::int64_t bytes = bytes_read(), devices = devices_us(), drives = drives_us();
  const double io_cpu = thread_cpu_seconds("stoker-io");
  const Clock::time_point start = Clock::now();
  if (flags_.decode) {
    for (std::size_t i = 0; i < tokens_.size(); ++i)
      RETURN_IF_ERROR(feed(std::span(tokens_).subspan(i, 1), Purpose::kDecode));
  } else {
    RETURN_IF_ERROR(feed(tokens_, Purpose::kPrefill));
  }
  round.seconds = seconds_since(start);
  round.io_cpu_seconds = thread_cpu_seconds("stoker-io") - io_cpu;
  round.bytes_read = bytes_read() - bytes;
  round.devices_us = devices_us() - devices;
  round.drives_us = drives_us() - drives;
  round.distinct_bytes = distinct_.bytes(*model_.source);
  round.experts = model_.runner->expert_counters() - experts;
  ASSIGN_OR_RETURN(const double after, probe_drive());
  round.drive_bytes_per_second = (before + after) / 2;
  return round;
}

Status ModelBench::run() {
  ProgressBar progress("measuring", ProgressBar::Unit::kTokens);
  const int total = flags_.warm_up + flags_.rounds * static_cast<int>(variants_.size());
  for (int number = 0; number < total; ++number) {
    ASSIGN_OR_RETURN(const Round round, run_round(number));
    if (number >= flags_.warm_up) rounds_.push_back(round);
    progress.update(std::int64_t{number + 1} * flags_.tokens, std::int64_t{total} * flags_.tokens);
  }
  return {};
}

// Median over the rounds of what `of` says of one, with the smallest and largest.
template <typename Fn>
Json spread(const std::vector<Round>& rounds, const Fn& of) {
  std::vector<double> values(rounds.size());
  std::transform(rounds.begin(), rounds.end(), values.begin(), of);
  const auto [least, most] = std::minmax_element(values.begin(), values.end());
  return Json{{"median", median(values)}, {"least", *least}, {"most", *most}};
}

// T = C + I - overlap, with C the time that compute did not stand still and I the time the drive
// needs for the bytes at the rate measured around the round.
double overlap_efficiency(const Round& round) {
  const double wait = static_cast<double>(round.experts.felt_wait_us) / 1e6;
  const double compute = round.seconds - wait;
  const double io = static_cast<double>(round.bytes_read) / round.drive_bytes_per_second;
  return std::min(compute, io) > 0.0 ? (compute + io - round.seconds) / std::min(compute, io) : 0.0;
}

std::vector<Round> ModelBench::rounds_of(std::size_t variant) const {
  std::vector<Round> rounds;
  std::copy_if(rounds_.begin(), rounds_.end(), std::back_inserter(rounds),
               [&](const Round& round) { return round.variant == variant; });
  return rounds;
}

// `count` of all experts that were demanded.
template <typename Fn>
Json share_of_experts(const std::vector<Round>& rounds, const Fn& count) {
  return spread(rounds, [&](const Round& r) {
    const std::int64_t demanded = r.experts.hit + r.experts.late + r.experts.miss;
    return static_cast<double>(count(r.experts)) /
           static_cast<double>(std::max<std::int64_t>(demanded, 1));
  });
}

void ModelBench::add_expert_figures(const std::vector<Round>& rounds, Json& json) const {
  if (model_.paging.reader() == nullptr) return;
  json["hit"] = share_of_experts(rounds, [](const LayerCounters& c) { return c.hit; });
  json["late"] = share_of_experts(rounds, [](const LayerCounters& c) { return c.late; });
  if (model_.tiers != nullptr) add_tier_figures(rounds, json);
  add_drive_figures(rounds, json);
}

// Who computed, and how long everybody was at work.
void ModelBench::add_tier_figures(const std::vector<Round>& rounds, Json& json) const {
  json["on_device"] = share_of_experts(rounds, [](const LayerCounters& c) { return c.device_hit; });
  json["uploaded"] =
      share_of_experts(rounds, [](const LayerCounters& c) { return c.device_upload; });
  json["on_host"] = share_of_experts(rounds, [](const LayerCounters& c) {
    return c.hit + c.late + c.miss - c.device_hit - c.device_upload;
  });
  json["host_busy_share"] = spread(rounds, [](const Round& r) {
    return static_cast<double>(r.experts.host_us) / 1e6 / r.seconds;
  });
  if (flags_.compare_sites) {
    json["devices_busy_share"] = spread(
        rounds, [](const Round& r) { return static_cast<double>(r.devices_us) / 1e6 / r.seconds; });
  }
  json["drives_busy_share"] = spread(
      rounds, [](const Round& r) { return static_cast<double>(r.drives_us) / 1e6 / r.seconds; });
  json["promoted_gb_s"] = spread(rounds, [](const Round& r) {
    return static_cast<double>(r.experts.promoted_bytes) / 1e9 / r.seconds;
  });
}

void ModelBench::add_drive_figures(const std::vector<Round>& rounds, Json& json) const {
  json["read_gb_s"] = spread(
      rounds, [](const Round& r) { return static_cast<double>(r.bytes_read) / r.seconds / 1e9; });
  json["felt_wait_share"] = spread(rounds, [](const Round& r) {
    return static_cast<double>(r.experts.felt_wait_us) / 1e6 / r.seconds;
  });
  const auto layers = static_cast<double>(moe_layers(model_.engine->config()).size());
  json["felt_wait_ms_per_layer"] = spread(rounds, [&](const Round& r) {
    return static_cast<double>(r.experts.felt_wait_us) / 1e3 / layers /
           (flags_.decode ? flags_.tokens : 1);
  });
  json["prefetch_used_share"] = spread(rounds, [](const Round& r) {
    const std::int64_t guessed = r.experts.prefetch_used_bytes + r.experts.prefetch_wasted_bytes;
    return guessed > 0
               ? static_cast<double>(r.experts.prefetch_used_bytes) / static_cast<double>(guessed)
               : 0.0;
  });
  json["io_cpu_share"] =
      spread(rounds, [](const Round& r) { return r.io_cpu_seconds / r.seconds; });
  if (!flags_.decode) {
    json["bytes_read_of_distinct"] = spread(rounds, [](const Round& r) {
      return static_cast<double>(r.bytes_read) / static_cast<double>(r.distinct_bytes);
    });
  }
  if (rounds.front().drive_bytes_per_second <= 0.0) return;
  json["drive_gb_s"] =
      spread(rounds, [](const Round& r) { return r.drive_bytes_per_second / 1e9; });
  json["read_of_drive"] = spread(rounds, [](const Round& r) {
    return static_cast<double>(r.bytes_read) / r.seconds / r.drive_bytes_per_second;
  });
  json["overlap_efficiency"] = spread(rounds, overlap_efficiency);
}

Json ModelBench::report() const {
  Json json = {{"suite", flags_.decode ? "decode" : "prefill"},
               {"model", model_.directory.string()},
               {"tokens", flags_.tokens},
               {"context", flags_.context},
               {"rounds", flags_.rounds},
               {"expert_arithmetic", flags_.model.expert_arithmetic},
               {"threads", model_.team ? model_.team->num_threads() : 1}};
  if (model_.paging.arena() != nullptr) {
    json["slots"] = model_.paging.arena()->num_slots();
    json["experts"] = model_.num_experts;
  }
  const auto tok_s = [&](const Round& r) { return flags_.tokens / r.seconds; };
  const std::vector<Round> first = rounds_of(0);
  json["tok_s"] = spread(first, tok_s);
  add_expert_figures(first, json);
  for (std::size_t variant = 1; variant < variants_.size(); ++variant) {
    const std::vector<Round> other = rounds_of(variant);
    Json figures = {{"tok_s", spread(other, tok_s)}};
    add_expert_figures(other, figures);
    const std::string name = variants_[variant].name;
    json[name] = figures;
    std::vector<double> ratios;
    for (std::size_t i = 0; i < std::min(first.size(), other.size()); ++i)
      ratios.push_back(other[i].seconds / first[i].seconds);
    const auto [least, most] = std::minmax_element(ratios.begin(), ratios.end());
    const std::string key = flags_.compare_prefetch ? "prefetch_on_over_off" : "auto_over_" + name;
    json[key] = {{"median", median(ratios)}, {"least", *least}, {"most", *most}};
  }
  if (flags_.decode && model_.team && model_.tiers == nullptr) {
    const std::int64_t bytes = weight_bytes_per_token(model_);
    const double achieved = static_cast<double>(bytes) * json["tok_s"]["median"].get<double>();
    const double peak = measure_read_bandwidth(*model_.team, kBandwidthBytes, kBandwidthRounds);
    json["weight_bytes_per_token"] = bytes;
    json["weights_gb_s"] = achieved / 1e9;
    json["memory_gb_s"] = peak / 1e9;
    json["weights_of_memory"] = peak > 0.0 ? achieved / peak : 0.0;
  }
  return json;
}

std::string one_line(const Json& value) {
  if (value.is_object() && value.contains("median")) {
    return fmt::format("{:<10.4g} ({:.4g} - {:.4g})", value["median"].get<double>(),
                       value["least"].get<double>(), value["most"].get<double>());
  }
  if (value.is_number_float()) return fmt::format("{:.4g}", value.get<double>());
  return value.is_string() ? value.get<std::string>() : value.dump();
}

void print_text(const Json& json, const std::string& prefix = "") {
  for (const auto& [name, value] : json.items()) {
    if (value.is_object() && !value.contains("median")) {
      print_text(value, name + ": ");
    } else {
      fmt::print("{:32} {}\n", prefix + name, one_line(value));
    }
  }
}

}  // namespace

Result<int> bench_model(const ModelBenchFlags& flags, const Gpus* gpus) {
  if (flags.compare_prefetch && flags.compare_sites) {
    return make_error(ErrorCode::kUsage, "--compare-prefetch and --compare-sites: one at a time");
  }
  if (flags.compare_sites && !may_use_gpus(flags.model)) {
    return make_error(ErrorCode::kUsage, "--compare-sites is for --backend cuda");
  }
  ModelFlags model_flags = flags.model;
  model_flags.ctx = flags.context + flags.tokens;
  model_flags.context_flag.tokens_beside = flags.tokens;
  LoadOptions options;
  if (!flags.decode) options.prefill_rows = flags.tokens;
  options.logit_rows = 1;
  options.measure_busy = flags.compare_sites;
  options.gpus = gpus;
  if (!flags.modelled_drive.empty()) {
    ASSIGN_OR_RETURN(options.modelled_drive_bytes_per_second, parse_size(flags.modelled_drive),
                     "--modelled-drive");
  }
  ASSIGN_OR_RETURN(LoadedModel model, load_model(model_flags, options));
  ModelBench bench(flags, model);
  RETURN_IF_ERROR(bench.prepare());
  RETURN_IF_ERROR(bench.run());
  const Json json = bench.report();
  if (flags.json) {
    fmt::print("{}\n", json.dump());
  } else {
    print_text(json);
  }
  return 0;
}

}  // namespace stoker::tools
