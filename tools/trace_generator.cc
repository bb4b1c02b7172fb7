#include "tools/trace_generator.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

namespace stoker::tools {
namespace {

constexpr int kTopicDims = 16;

// Normal deviates out of integers alone, so that a seed means the same everywhere.
class Random {
 public:
  explicit Random(std::uint64_t seed) : state_(seed * 0x9e3779b97f4a7c15u + 0x632be59bd9b4e019u) {}

  // The sum of the four 16-bit quarters of a random word, standardised: beyond three standard
  // deviations it is thinner than a normal, which a choice by rank does not notice.
  float normal() {
    std::uint64_t word = next();
    std::int32_t sum = 0;
    for (int i = 0; i < 4; ++i, word >>= 16) sum += static_cast<std::int32_t>(word & 0xffff);
    constexpr float kMean = 131070.0f, kDeviation = 37837.2f;
    return (static_cast<float>(sum) - kMean) / kDeviation;
  }

 private:
  std::uint64_t next() {  // splitmix64
    std::uint64_t z = state_ += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
  }
  std::uint64_t state_;
};

// A process that keeps unit variance and forgets within `tokens` tokens: value = keep * value +
// take * normal.
struct Fading {
  float keep, take;
  explicit Fading(double tokens)
      : keep(static_cast<float>(std::exp(-1.0 / tokens))), take(std::sqrt(1.0f - keep * keep)) {}
};

// Writes the best `count` experts by score, best first, from the best groups: a group counts by the
// sum of its two best scores.
class Ranking {
 public:
  explicit Ranking(const RouterSpec& spec)
      : spec_(spec), group_size_(spec.num_experts / spec.num_groups) {}

  void take(std::span<const float> scores, std::span<std::int16_t> out) {
    groups_.clear();
    for (int group = 0; group < spec_.num_groups; ++group) {
      float best = std::numeric_limits<float>::lowest(), second = best;
      for (const float score : scores.subspan(group * group_size_, group_size_)) {
        if (score > best) {
          second = std::exchange(best, score);
        } else {
          second = std::max(second, score);
        }
      }
      groups_.push_back({group_size_ > 1 ? best + second : best, group});
    }
    std::partial_sort(groups_.begin(), groups_.begin() + spec_.top_groups, groups_.end(),
                      std::greater<>());
    ranked_.clear();
    for (int i = 0; i < spec_.top_groups; ++i) {
      const int begin = groups_[i].second * group_size_;
      for (int id = begin; id < begin + group_size_; ++id) ranked_.push_back({scores[id], id});
    }
    const auto count = static_cast<std::ptrdiff_t>(std::min(out.size(), ranked_.size()));
    std::partial_sort(ranked_.begin(), ranked_.begin() + count, ranked_.end(), std::greater<>());
    std::fill(out.begin(), out.end(), kNoGuess);
    for (std::ptrdiff_t i = 0; i < count; ++i)
      out[i] = static_cast<std::int16_t>(ranked_[i].second);
  }

 private:
  RouterSpec spec_;
  int group_size_;
  std::vector<std::pair<float, int>> groups_, ranked_;
};

// The scores of all layers at one token, and what is guessed of them.
class Scores {
 public:
  Scores(const TraceModel& model, int num_layers, int num_experts, Random& random)
      : random_(random),
        model_(model),
        topic_fading_(model.topic_tokens),
        recency_fading_(model.recency_tokens),
        recency_share_(1.0 - model.popularity - model.topic) {
    CHECK(recency_share_ >= 0.0, "shares of {} and {}", model.popularity, model.topic);
    const auto size = static_cast<std::size_t>(num_layers) * static_cast<std::size_t>(num_experts);
    for (auto* part : {&popularity_, &recency_, &known_, &new_, &scores_}) part->resize(size);
    direction_.resize(size * kTopicDims);
    for (auto* part : {&popularity_, &recency_, &direction_}) {
      for (float& value : *part) value = random_.normal();
    }
    for (float& value : topic_) value = random_.normal();
  }

  void next_token() {
    for (float& value : topic_)
      value = topic_fading_.keep * value + topic_fading_.take * random_.normal();
    const float popularity = root(model_.popularity), topic = root(model_.topic / kTopicDims);
    const float recency = root(recency_share_);
    for (std::size_t i = 0; i < scores_.size(); ++i) {
      const float kept = recency_fading_.keep * recency_[i];
      const float added = recency_fading_.take * random_.normal();
      recency_[i] = kept + added;
      const float* const direction = &direction_[i * kTopicDims];
      const float towards = std::inner_product(topic_.begin(), topic_.end(), direction, 0.0f);
      known_[i] = popularity * popularity_[i] + topic * towards + recency * kept;
      new_[i] = recency * added;
      scores_[i] = known_[i] + new_[i];
    }
  }

  std::span<const float> layer(int place, int num_experts) const {
    return std::span(scores_).subspan(static_cast<std::size_t>(place) * num_experts, num_experts);
  }
  // The scores as they look `lead` layers before: beside what is known, new parts of the right size
  // that are only correlated with the true ones.
  void foresee(int lead, int place, std::span<float> out) {
    const double right = model_.foreseen[static_cast<std::size_t>(lead - 1)];
    const float wrong = recency_fading_.take * root((1.0 - right * right) * recency_share_);
    const std::size_t begin = static_cast<std::size_t>(place) * out.size();
    for (std::size_t i = 0; i < out.size(); ++i) {
      out[i] = known_[begin + i] + static_cast<float>(right) * new_[begin + i] +
               wrong * random_.normal();
    }
  }

 private:
  static float root(double share) { return static_cast<float>(std::sqrt(share)); }

  Random& random_;
  TraceModel model_;
  Fading topic_fading_, recency_fading_;
  double recency_share_;
  std::array<float, kTopicDims> topic_{};
  std::vector<float> popularity_, recency_, direction_;  // [L, experts (, topic dims)]
  std::vector<float> known_, new_, scores_;              // [L, experts], of this token
};

}  // namespace

Result<RoutingTrace> generate_trace(const ModelConfig& config, const GeneratedTrace& wanted) {
  CHECK(wanted.num_tokens > 0 && wanted.num_prefill <= wanted.num_tokens, "{} tokens, {} prefill",
        wanted.num_tokens, wanted.num_prefill);
  RoutingTrace trace;
  trace.layers = moe_layers(config);
  trace.num_experts = config.n_routed_experts;
  trace.top_k = config.num_experts_per_tok;
  if (trace.layers.empty()) return Error(ErrorCode::kInvalidArgument, "the model has no experts");
  if (trace.num_experts > std::numeric_limits<std::int16_t>::max()) {
    return make_error(ErrorCode::kUnsupported, "{} experts; a trace names at most {}",
                      trace.num_experts, std::numeric_limits<std::int16_t>::max());
  }
  const int ranked = wanted.num_ranked > 0 ? wanted.num_ranked : 2 * trace.top_k;
  trace.num_ranked = std::min(ranked, trace.num_experts);
  trace.model = fmt::format("generated, seed {}", wanted.seed);

  const int num_layers = trace.num_layers();
  const auto rows = static_cast<std::size_t>(wanted.num_tokens) * num_layers;
  trace.experts.resize(rows * trace.top_k);
  for (auto& guesses : trace.guesses) guesses.assign(rows * trace.num_ranked, kNoGuess);
  Random random(wanted.seed);
  Scores scores(wanted.model, num_layers, trace.num_experts, random);
  Ranking ranking(config.layers()[trace.layers.front()].router);
  std::vector<float> foreseen(static_cast<std::size_t>(trace.num_experts));
  for (int token = 0; token < wanted.num_tokens; ++token) {
    scores.next_token();
    for (int place = 0; place < num_layers; ++place) {
      const std::size_t row = static_cast<std::size_t>(token) * num_layers + place;
      ranking.take(scores.layer(place, trace.num_experts),
                   std::span(trace.experts).subspan(row * trace.top_k, trace.top_k));
      for (int lead = 1; lead <= kMaxLead && trace.has_guess(lead, place); ++lead) {
        // Before the first MoE layer more is missing than a layer's attention.
        scores.foresee(lead <= place ? lead : kMaxLead, place, foreseen);
        ranking.take(
            foreseen,
            std::span(trace.guesses[lead - 1]).subspan(row * trace.num_ranked, trace.num_ranked));
      }
    }
    const bool prefill = token < wanted.num_prefill;
    trace.purpose.push_back(prefill ? Purpose::kPrefill : Purpose::kDecode);
    trace.step.push_back(prefill ? 0 : token - std::max(0, wanted.num_prefill - 1));
  }
  return trace;
}

}  // namespace stoker::tools
