#include "tools/trace_hooks.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace stoker::tools {
namespace {

constexpr std::int64_t kPieceTokens = 1024;

// Copies the first out.size() of `ranked` as they stand in a trace, kNoGuess behind their end.
void keep(std::span<const std::int32_t> ranked, std::span<std::int16_t> out) {
  const std::size_t count = std::min(ranked.size(), out.size());
  std::transform(ranked.begin(), ranked.begin() + static_cast<std::ptrdiff_t>(count), out.begin(),
                 [](std::int32_t id) { return static_cast<std::int16_t>(id); });
  std::fill(out.begin() + static_cast<std::ptrdiff_t>(count), out.end(), kNoGuess);
}

}  // namespace

TraceRecorder::TraceRecorder(const ModelConfig& config, std::string model, Options options)
    : options_(options) {
  CHECK(config.n_routed_experts <= std::numeric_limits<std::int16_t>::max(), "{} experts",
        config.n_routed_experts);
  step_.layers = moe_layers(config);
  step_.num_experts = config.n_routed_experts;
  step_.top_k = config.num_experts_per_tok;
  step_.num_ranked = std::min({options.num_ranked, kMaxRankedGuesses, config.n_routed_experts});
  step_.model = std::move(model);
}

void TraceRecorder::on_begin(const StepBatch& batch) {
  const std::size_t rows = batch.tokens.size() * step_.layers.size();
  step_.experts.assign(rows * static_cast<std::size_t>(step_.top_k), 0);
  if (options_.weights) step_.weights.assign(step_.experts.size(), 0.0f);
  for (auto& guesses : step_.guesses)
    guesses.assign(rows * static_cast<std::size_t>(step_.num_ranked), kNoGuess);
  step_.token_ids.assign(batch.tokens.begin(), batch.tokens.end());
  step_.purpose.clear();
  for (const Segment& segment : batch.segments) {
    step_.purpose.insert(step_.purpose.end(), static_cast<std::size_t>(segment.num_rows),
                         segment.purpose);
  }
  step_.step.assign(batch.tokens.size(), num_steps_);
}

void TraceRecorder::on_routes(int layer, const RouteMailbox& routes) {
  const int place = step_.place_of(layer);
  if (place < 0) return;
  const auto k = static_cast<std::size_t>(step_.top_k);
  for (std::size_t row = 0; row < step_.step.size(); ++row) {
    const std::size_t to = (row * step_.layers.size() + static_cast<std::size_t>(place)) * k;
    keep(routes.experts.subspan(row * k, k), std::span(step_.experts).subspan(to, k));
    if (options_.weights) {
      const auto weights = routes.weights.subspan(row * k, k);
      std::copy(weights.begin(), weights.end(),
                step_.weights.begin() + static_cast<std::ptrdiff_t>(to));
    }
  }
}

void TraceRecorder::on_look_ahead(const LookAhead& guesses) {
  const int place = step_.place_of(guesses.layer);
  if (place < 0) return;
  const auto given = static_cast<std::size_t>(guesses.num_ranked);
  const auto kept = static_cast<std::size_t>(step_.num_ranked);
  const std::span to(step_.guesses[static_cast<std::size_t>(guesses.lead - 1)]);
  for (std::size_t row = 0; row < step_.step.size(); ++row) {
    keep(guesses.experts.subspan(row * given, given),
         to.subspan((row * step_.layers.size() + static_cast<std::size_t>(place)) * kept, kept));
  }
}

void TraceRecorder::on_end() {
  const std::int64_t rows = step_.num_tokens();
  if (num_dropped_ > 0 || (num_tokens_ + rows) * step_.bytes_per_token() > options_.max_bytes) {
    num_dropped_ += rows;
    return;
  }
  if (pieces_.empty() || pieces_.back().num_tokens() + rows > kPieceTokens) {
    pieces_.push_back(step_.without_tokens());
    pieces_.back().reserve(std::max(rows, kPieceTokens), options_.weights);
  }
  pieces_.back().append(step_);
  num_tokens_ += rows;
  ++num_steps_;
}

Status TraceRecorder::write(const std::filesystem::path& path) const {
  if (pieces_.empty()) {
    return make_error(ErrorCode::kInvalidArgument,
                      "{} was not written: no token ran, there is no trace", path.string());
  }
  return write_routing_trace(path, pieces_);
}

RoutingTrace TraceRecorder::trace() const {
  RoutingTrace all = step_.without_tokens();
  all.reserve(num_tokens_, options_.weights);
  for (const RoutingTrace& piece : pieces_) all.append(piece);
  return all;
}

TraceForcer::TraceForcer(RoutingTrace trace) : trace_(std::move(trace)) {
  CHECK(trace_.num_tokens() > 0, "an empty trace");
  given_.resize(trace_.layers.size());
}

void TraceForcer::seek(std::int64_t token) {
  first_ = token % trace_.num_tokens();
  num_rows_ = 0;
}

void TraceForcer::on_begin(const StepBatch& batch) { num_rows_ = std::ssize(batch.tokens); }

std::span<const std::int32_t> TraceForcer::forced_experts(int layer) {
  const int place = trace_.place_of(layer);
  if (place < 0) return {};
  std::vector<std::int32_t>& experts = given_[static_cast<std::size_t>(place)].experts;
  experts.clear();
  for_each_row([&](std::int64_t token) {
    const auto chosen = trace_.chosen(token, place);
    experts.insert(experts.end(), chosen.begin(), chosen.end());
  });
  return experts;
}

std::span<const float> TraceForcer::forced_weights(int layer) {
  const int place = trace_.place_of(layer);
  if (place < 0 || trace_.weights.empty() || std::isnan(trace_.chosen_weights(0, place)[0]))
    return {};
  std::vector<float>& weights = given_[static_cast<std::size_t>(place)].weights;
  weights.clear();
  for_each_row([&](std::int64_t token) {
    const auto chosen = trace_.chosen_weights(token, place);
    weights.insert(weights.end(), chosen.begin(), chosen.end());
  });
  return weights;
}

LookAhead TraceForcer::forced_look_ahead(int layer, int lead) {
  const int place = trace_.place_of(layer);
  if (place < 0 || trace_.num_ranked == 0) return {};
  // All rows get as many guesses as the row that has the fewest.
  std::ptrdiff_t count = trace_.num_ranked;
  for_each_row([&](std::int64_t token) {
    const auto row = trace_.guessed(lead, token, place);
    count = std::min(count, std::find(row.begin(), row.end(), kNoGuess) - row.begin());
  });
  std::vector<std::int32_t>& guesses =
      given_[static_cast<std::size_t>(place)].guesses[static_cast<std::size_t>(lead - 1)];
  guesses.clear();
  for_each_row([&](std::int64_t token) {
    const auto row = trace_.guessed(lead, token, place);
    guesses.insert(guesses.end(), row.begin(), row.begin() + count);
  });
  return {trace_.made_at(lead, place), layer,  lead, static_cast<int>(num_rows_),
          static_cast<int>(count),     guesses};
}

}  // namespace stoker::tools
