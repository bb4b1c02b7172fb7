// Runs that write a routing trace, and runs that follow one. Each serves one pass at a time.
#pragma once

#include <array>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <vector>

#include "core/base/error.h"
#include "core/model/model_config.h"
#include "core/runtime/step.h"
#include "tools/routing_trace.h"

namespace stoker::tools {

// Keeps the trace of a run in memory until it is written: about 4.6 KB a token for DeepSeek-V3.2
// with its 16 guesses, beside 1.9 KB of weights if they are wanted. Steps that fail leave nothing.
class TraceRecorder final : public StepHooks {
 public:
  struct Options {
    bool weights = false;
    int num_ranked = 16;                             // guesses kept of each look-ahead
    std::int64_t max_bytes = std::int64_t{1} << 30;  // what comes after that is not recorded
  };
  // `model`: a name that people will recognise.
  TraceRecorder(const ModelConfig& config, std::string model, Options options);
  TraceRecorder(const ModelConfig& config, std::string model)
      : TraceRecorder(config, std::move(model), Options()) {}

  std::int64_t num_tokens() const { return num_tokens_; }
  // Tokens of the run that came after max_bytes was reached.
  std::int64_t num_dropped() const { return num_dropped_; }

  // What was recorded so far. An error if that is nothing.
  Status write(const std::filesystem::path& path) const;
  RoutingTrace trace() const;

  void on_begin(const StepBatch& batch) override;
  void on_end() override;
  void on_routes(int layer, const RouteMailbox& routes) override;
  int num_ranked_wanted() override { return step_.num_ranked; }
  void on_look_ahead(const LookAhead& guesses) override;

 private:
  Options options_;
  RoutingTrace step_;                 // the one being recorded
  std::vector<RoutingTrace> pieces_;  // finished steps; pieces, so that nothing large ever moves
  std::int32_t num_steps_ = 0;
  std::int64_t num_tokens_ = 0, num_dropped_ = 0;
};

// Makes a run take the trace's experts, weights where it has them, and guesses: the rows of the run
// in order take the trace's tokens in order, from the start again when they are used up. The run
// still computes its routers and gates. A step that fails has used nothing up.
class TraceForcer final : public StepHooks {
 public:
  // `trace` has at least one token and has been checked against the model.
  explicit TraceForcer(RoutingTrace trace);

  const RoutingTrace& trace() const { return trace_; }
  // The next row takes this token (modulo the trace's length).
  void seek(std::int64_t token);

  void on_begin(const StepBatch& batch) override;
  void on_end() override { seek(first_ + num_rows_); }
  std::span<const std::int32_t> forced_experts(int layer) override;
  std::span<const float> forced_weights(int layer) override;
  LookAhead forced_look_ahead(int layer, int lead) override;

 private:
  // What a layer was given in this step.
  struct Given {
    std::vector<std::int32_t> experts;
    std::vector<float> weights;
    std::array<std::vector<std::int32_t>, kMaxLead> guesses;
  };
  // Calls fn(token of the trace) for every row of the step.
  template <typename Fn>
  void for_each_row(const Fn& fn) const {
    for (std::int64_t row = 0; row < num_rows_; ++row) fn((first_ + row) % trace_.num_tokens());
  }

  RoutingTrace trace_;
  std::vector<Given> given_;  // by place
  std::int64_t first_ = 0;    // token of the step's first row
  std::int64_t num_rows_ = 0;
};

}  // namespace stoker::tools
