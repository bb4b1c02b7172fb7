#include "tools/simulation.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <span>
#include <utility>

#include "core/base/clock.h"
#include "core/model/tensor_table.h"
#include "core/runtime/expert_plan.h"
#include "prefetch/expert_manager.h"
#include "prefetch/null_arena.h"
#include "tools/belady.h"
#include "tools/modelled_experts.h"
#include "tools/trace_hooks.h"

namespace stoker::tools {
namespace {

constexpr int kPartsAtOnce = 256;  // as many as the forward pass takes

// Tokens [first, first + num_rows) of a trace: one step.
struct TraceStep {
  std::int64_t first = 0;
  int num_rows = 0;
  int num_decode_rows = 0;
  std::vector<RowRange> ranges;
};

std::vector<TraceStep> steps_of(const RoutingTrace& trace) {
  std::vector<TraceStep> steps;
  for (std::int64_t token = 0; token < trace.num_tokens(); ++token) {
    const auto at = static_cast<std::size_t>(token);
    if (token == 0 || trace.step[at] != trace.step[at - 1]) steps.push_back({token, 0, 0, {}});
    TraceStep& step = steps.back();
    const Purpose purpose = trace.purpose[at];
    if (step.ranges.empty() || step.ranges.back().purpose != purpose)
      step.ranges.push_back({step.num_rows, 0, 0, purpose});
    ++step.ranges.back().num_rows;
    ++step.num_rows;
    step.num_decode_rows += purpose == Purpose::kDecode;
  }
  return steps;
}

// Spends microseconds and their fractions on a clock that counts whole ones.
class Spender {
 public:
  explicit Spender(ManualClock& clock) : clock_(clock) {}
  void spend(double us) {
    total_ += us;
    owed_ += us;
    const double whole = std::floor(owed_);
    clock_.advance(static_cast<std::int64_t>(whole));
    owed_ -= whole;
  }
  double total() const { return total_; }

 private:
  ManualClock& clock_;
  double owed_ = 0.0, total_ = 0.0;
};

// A run of the forward pass with everything but the experts' coming and going left out.
class Replay {
 public:
  static Result<std::unique_ptr<Replay>> create(const ModelConfig& config, QuantSpec experts,
                                                const RoutingTrace& trace,
                                                const SimulationOptions& options, int max_rows) {
    auto replay = std::unique_ptr<Replay>(new Replay(config, experts, trace, options, max_rows));
    ExpertManagerOptions manager_options;
    manager_options.policy = options.policy;
    manager_options.prefetch = options.prefetch;
    ASSIGN_OR_RETURN(replay->manager_,
                     ExpertManager::create(expert_layers(config), replay->source_, replay->reader_,
                                           replay->arena_, replay->clock_, manager_options));
    return replay;
  }

  // Runs a step; `layer_us` takes what each layer computed, [L].
  Status run(const TraceStep& step, std::span<double> layer_us) {
    const std::int64_t started_us = clock_.now_us();
    tokens_.resize(static_cast<std::size_t>(step.num_rows));
    const Segment segment{nullptr, 0, step.num_rows, Purpose::kDecode, Logits::kNone};
    forcer_.seek(step.first);
    forcer_.on_begin({tokens_, {&segment, 1}});
    const double rows_factor = 1.0 + costs_.row_share * (step.num_rows - 1);
    for (int place = 0; place < trace_.num_layers(); ++place) {
      const double before = spender_.total();
      if (place == 0) begin_step(step, rows_factor);
      RETURN_IF_ERROR(run_layer(step, place, rows_factor));
      if (place + 1 == trace_.num_layers()) spender_.spend(costs_.head_us * rows_factor);
      layer_us[static_cast<std::size_t>(place)] = spender_.total() - before;
      const LayerCounters now = manager_->counters(trace_.layers[static_cast<std::size_t>(place)]);
      step_counters_[static_cast<std::size_t>(place)] =
          now - std::exchange(counted_[static_cast<std::size_t>(place)], now);
    }
    last_us_ = clock_.now_us() - started_us;
    return {};
  }

  StepRecord record(const TraceStep& step) const {
    return {step.num_rows, step.num_decode_rows, last_us_, trace_.layers, step_counters_};
  }

 private:
  Replay(const ModelConfig& config, QuantSpec experts, const RoutingTrace& trace,
         const SimulationOptions& options, int max_rows)
      : trace_(trace),
        costs_(options.costs),
        gate_up_rows_(config.moe_intermediate_size),
        down_rows_(config.hidden_size),
        source_(config, experts),
        arena_(options.num_slots, source_.expert_bytes(trace.layers.front())),
        reader_(source_, clock_, reader_options(options)),
        forcer_(trace),
        plan_(max_rows, trace.top_k, trace.num_experts),
        parts_(kPartsAtOnce),
        weights_(static_cast<std::size_t>(max_rows) * static_cast<std::size_t>(trace.top_k)),
        experts_(weights_.size()),
        counted_(trace.layers.size()),
        step_counters_(trace.layers.size()) {}

  ModelledReaderOptions reader_options(const SimulationOptions& options) {
    ModelledReaderOptions reader;
    reader.drives = options.drives;
    reader.sleep = [this](std::chrono::microseconds time) { clock_.advance(time.count()); };
    return reader;
  }

  void begin_step(const TraceStep& step, double rows_factor) {
    manager_->begin_step(ids_of(step));
    spender_.spend((costs_.step_us - costs_.head_us) * rows_factor);
    if (trace_.layers.front() > 0) look_ahead(-1, rows_factor);
  }
  // Empty where the trace does not know them.
  std::span<const TokenId> ids_of(const TraceStep& step) const {
    if (trace_.token_ids.empty()) return {};
    return std::span(trace_.token_ids)
        .subspan(static_cast<std::size_t>(step.first), static_cast<std::size_t>(step.num_rows));
  }

  // As Forward::mixture_of_experts() goes.
  Status run_layer(const TraceStep& step, int place, double rows_factor) {
    const int layer = trace_.layers[static_cast<std::size_t>(place)];
    spender_.spend(costs_.layer_us * rows_factor);
    const std::span<const std::int32_t> chosen = forcer_.forced_experts(layer);
    std::copy(chosen.begin(), chosen.end(), experts_.begin());
    if (!trace_.token_ids.empty()) manager_->note_choices(layer, ids_of(step), chosen);
    plan_.build(
        {std::span(experts_).first(chosen.size()), std::span(weights_).first(chosen.size())},
        step.ranges, step.num_rows);
    ASSIGN_OR_RETURN(const ExpertSetPtr set, manager_->demand(layer, plan_.uses()));
    spender_.spend(costs_.shared_us * rows_factor);
    look_ahead(place, rows_factor);
    while (!set->exhausted()) {
      const std::size_t ready = set->take_ready(parts_);
      if (ready > 0) {
        compute({parts_.data(), ready});
        continue;
      }
      RETURN_IF_ERROR(set->status());
      if (set->waits_for_slots()) {
        set->retire_taken();
      } else {
        const std::int64_t next_us = reader_.next_event_us();
        CHECK(next_us != ModelledReader::kNever, "layer {} waits for nothing", layer);
        manager_->wait(
            std::chrono::microseconds(std::max<std::int64_t>(1, next_us - clock_.now_us())));
      }
    }
    return {};
  }

  // From the layer at `place`, or from before the first one (-1).
  void look_ahead(int place, double rows_factor) {
    if (manager_->num_ranked_guesses() == 0) return;
    for (int lead = 1; lead <= kMaxLead && place + lead < trace_.num_layers(); ++lead) {
      const LookAhead guesses =
          forcer_.forced_look_ahead(trace_.layers[static_cast<std::size_t>(place + lead)], lead);
      if (guesses.num_ranked == 0) continue;
      spender_.spend(costs_.look_ahead_us * rows_factor);
      manager_->hint(guesses);
    }
  }

  void compute(std::span<const ExpertPart> parts) {
    double experts = 0.0;  // in whole experts of one row
    for (const ExpertPart& part : parts) {
      if (!part.passes_guard()) continue;  // modelled bytes are always good
      // Of an expert's weights two thirds are gate and up.
      const double share = part.half == ExpertHalf::kGateUp
                               ? 2.0 / 3.0 * part.num_rows / gate_up_rows_
                               : 1.0 / 3.0 * part.num_rows / down_rows_;
      const auto rows =
          static_cast<double>(plan_.uses()[static_cast<std::size_t>(part.use)].rows.size());
      experts += share * (1.0 + costs_.row_share * (rows - 1.0));
    }
    spender_.spend(costs_.call_us + costs_.expert_us * experts);
  }

  const RoutingTrace& trace_;
  ComputeCosts costs_;
  double gate_up_rows_, down_rows_;  // of a whole expert
  ManualClock clock_;
  Spender spender_{clock_};
  ModelledExperts source_;
  NullArena arena_;
  ModelledReader reader_;
  std::unique_ptr<ExpertManager> manager_;
  TraceForcer forcer_;
  ExpertPlan plan_;
  std::vector<ExpertPart> parts_;
  std::vector<float> weights_;
  std::vector<std::int32_t> experts_;
  std::vector<TokenId> tokens_;
  std::vector<LayerCounters> counted_, step_counters_;  // by place
  std::int64_t last_us_ = 0;
};

// Adds the bounds for consecutive steps, whose layers computed `layer_us`.
void add_bounds(const RoutingTrace& trace, std::span<const TraceStep> steps,
                std::span<const double> layer_us, bool from_start, int num_slots, double read_us,
                SimulatedSteps& out) {
  const std::int64_t end = steps.back().first + steps.back().num_rows;
  const DemandSequence demands = demands_of(trace, steps.front().first, end);
  const std::vector<std::int32_t> reads =
      fewest_reads(demands, num_slots, from_start ? FirstContent::kEmpty : FirstContent::kBest);
  for (const std::int32_t count : reads) out.fewest_reads += count;
  out.least_us += least_time_us(reads, layer_us, read_us);
}

bool is_decode(const TraceStep& step) { return step.num_decode_rows == step.num_rows; }

}  // namespace

double ComputeCosts::token_us(int num_layers, int top_k) const {
  return step_us + num_layers * (layer_us + shared_us + top_k * expert_us);
}

ComputeCosts costs_at_bandwidth(const ModelConfig& config, QuantSpec experts,
                                double bytes_per_second) {
  // Bytes that a token reads, by what they are charged to.
  double step = 0.0, head = 0.0, attention = 0.0, router = 0.0, shared = 0.0;
  const std::vector<int> layers = moe_layers(config);
  const auto is_moe = [&](int layer) {
    return std::binary_search(layers.begin(), layers.end(), layer);
  };
  for (const TensorSpec& spec : tensor_table(config)) {
    const auto bytes = static_cast<double>(spec.stored_bytes());
    switch (spec.category) {
      case TensorCategory::kEmbedding:  // a row of it
      case TensorCategory::kRoutedExperts:
      case TensorCategory::kMtp:
        break;
      case TensorCategory::kSharedExperts:
        shared += bytes;
        break;
      case TensorCategory::kRouter:
        router += bytes;
        break;
      default:
        (is_moe(spec.layer) ? attention : step) += bytes;
        if (spec.category == TensorCategory::kHead) head += bytes;
    }
  }
  const double us_per_byte = 1e6 / bytes_per_second;
  const auto per_layer = us_per_byte / static_cast<double>(std::max<std::size_t>(1, layers.size()));
  const quant::ExpertBlocks blocks(config.hidden_size, config.moe_intermediate_size, experts);
  ComputeCosts costs;
  costs.step_us = step * us_per_byte;
  costs.head_us = head * us_per_byte;
  costs.layer_us = (attention + router) * per_layer;
  costs.shared_us = shared * per_layer;
  costs.look_ahead_us = router * per_layer;
  costs.expert_us = static_cast<double>(blocks.expert_bytes()) * us_per_byte;
  return costs;
}

namespace {

// Microseconds that a step of one decoded row computed; empty for other steps.
std::optional<double> computed_us(const nlohmann::json& step) {
  if (step.at("rows") != 1 || step.at("decode_rows") != 1) return std::nullopt;
  double us = step.at("us").get<double>();
  for (const nlohmann::json& layer : step.at("layers"))
    us -= layer.at("felt_wait_us").get<double>();
  return us;
}

}  // namespace

Result<ComputeCosts> calibrated(const ComputeCosts& costs, const ModelConfig& config,
                                std::string_view json) {
  std::vector<double> times;
  try {
    const nlohmann::json stats = nlohmann::json::parse(json);
    for (const nlohmann::json& step : stats.at("tokens")) {
      if (const auto us = computed_us(step)) times.push_back(*us);
    }
  } catch (const nlohmann::json::exception& error) {
    return make_error(ErrorCode::kCorrupt, "this is no --stats file: {}", error.what());
  }
  if (times.empty()) return Error(ErrorCode::kInvalidArgument, "no step decodes a single token");
  const auto middle = times.begin() + std::ssize(times) / 2;
  std::nth_element(times.begin(), middle, times.end());
  if (*middle <= 0.0) {
    return make_error(ErrorCode::kCorrupt, "a token that computes for {} us", *middle);
  }
  const int num_layers = static_cast<int>(moe_layers(config).size());
  const double factor = *middle / costs.token_us(num_layers, config.num_experts_per_tok);
  ComputeCosts scaled = costs;
  for (double* cost : {&scaled.step_us, &scaled.head_us, &scaled.layer_us, &scaled.shared_us,
                       &scaled.look_ahead_us, &scaled.expert_us}) {
    *cost *= factor;
  }
  return scaled;
}

RoutingTrace with_predictor(RoutingTrace trace, Predictor predictor) {
  if (predictor == Predictor::kGate) return trace;
  trace.num_ranked = trace.top_k;
  for (int lead = 1; lead <= kMaxLead; ++lead) {
    std::vector<std::int16_t>& guesses = trace.guesses[static_cast<std::size_t>(lead - 1)];
    guesses.assign(trace.experts.size(), kNoGuess);
    for (std::int64_t token = 0; token < trace.num_tokens(); ++token) {
      for (int place = 0; place < trace.num_layers(); ++place) {
        const std::int64_t from = predictor == Predictor::kPerfect ? token : token - 1;
        if (from < 0 || !trace.has_guess(lead, place)) continue;
        const auto chosen = trace.chosen(from, place);
        std::copy(chosen.begin(), chosen.end(),
                  guesses.begin() + (token * trace.num_layers() + place) * trace.top_k);
      }
    }
  }
  return trace;
}

Result<Simulated> simulate(const ModelConfig& config, QuantSpec experts, const RoutingTrace& trace,
                           const SimulationOptions& options, StepListener* listener) {
  const std::vector<TraceStep> steps = steps_of(trace);
  int max_rows = 0;
  for (const TraceStep& step : steps) max_rows = std::max(max_rows, step.num_rows);
  ASSIGN_OR_RETURN(const std::unique_ptr<Replay> replay,
                   Replay::create(config, experts, trace, options, max_rows));
  double bandwidth = 0.0;
  for (const ModelledDrive& drive : options.drives) bandwidth += drive.bytes_per_second;
  const ModelledExperts source(config, experts);
  const double read_us =
      1e6 * static_cast<double>(source.expert_bytes(trace.layers.front())) / bandwidth;

  // 1. The run.
  const std::size_t num_layers = trace.layers.size();
  std::vector<double> layer_us(steps.size() * num_layers);
  Simulated out;
  for (std::size_t i = 0; i < steps.size(); ++i) {
    RETURN_IF_ERROR(replay->run(steps[i], std::span(layer_us).subspan(i * num_layers, num_layers)));
    const StepRecord record = replay->record(steps[i]);
    if (listener != nullptr) listener->on_step(record);
    if (steps[i].first < options.skipped_tokens) continue;
    SimulatedSteps& kind = is_decode(steps[i]) ? out.decode : out.prefill;
    ++kind.num_steps;
    kind.num_tokens += steps[i].num_rows;
    kind.us += record.us;
    for (const LayerCounters& counters : record.counters) kind.counters += counters;
  }
  // 2. The bounds, for every stretch of steps of one kind.
  for (std::size_t begin = 0; begin < steps.size();) {
    std::size_t end = begin + 1;
    while (end < steps.size() && is_decode(steps[end]) == is_decode(steps[begin]) &&
           (steps[end].first < options.skipped_tokens) ==
               (steps[begin].first < options.skipped_tokens)) {
      ++end;
    }
    if (steps[begin].first >= options.skipped_tokens) {
      add_bounds(trace, std::span(steps).subspan(begin, end - begin),
                 std::span(layer_us).subspan(begin * num_layers, (end - begin) * num_layers),
                 begin == 0, options.num_slots, read_us,
                 is_decode(steps[begin]) ? out.decode : out.prefill);
    }
    begin = end;
  }
  return out;
}

}  // namespace stoker::tools
