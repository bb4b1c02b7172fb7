#include "core/runtime/sampler.h"

#include <algorithm>
#include <cmath>

#include "core/base/check.h"

namespace stoker {
namespace {

// SplitMix64 (Steele, Lea, Flood 2014): the n-th output is a function of seed and n.
std::uint64_t split_mix(std::uint64_t seed, std::uint64_t n) {
  std::uint64_t z = seed + (n + 1) * 0x9e3779b97f4a7c15ull;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
  return z ^ (z >> 31);
}

// How many candidates, in descending order, are looked at before the rest is sorted too.
constexpr std::size_t kFirstSort = 256;

}  // namespace

Status validate(const SamplerOptions& options, int vocab_size) {
  const auto refuse = [](const char* name, double value, const char* range) {
    return make_error(ErrorCode::kInvalidArgument, "{} is {}; it must be {}", name, value, range);
  };
  if (!(options.temperature >= 0.0f && options.temperature <= 100.0f)) {
    return refuse("temperature", options.temperature, "between 0 and 100");
  }
  if (!(options.top_p > 0.0f && options.top_p <= 1.0f))
    return refuse("top_p", options.top_p, "in (0, 1]");
  if (options.top_k < 0) return refuse("top_k", options.top_k, "0 (all) or more");
  if (!(options.min_p >= 0.0f && options.min_p <= 1.0f))
    return refuse("min_p", options.min_p, "in [0, 1]");
  if (!(options.repetition_penalty > 0.0f && std::isfinite(options.repetition_penalty))) {
    return refuse("repetition_penalty", options.repetition_penalty, "more than 0");
  }
  if (!std::isfinite(options.presence_penalty))
    return refuse("presence_penalty", options.presence_penalty, "finite");
  if (!std::isfinite(options.frequency_penalty)) {
    return refuse("frequency_penalty", options.frequency_penalty, "finite");
  }
  for (const auto& [token, bias] : options.logit_bias) {
    if (token < 0 || token >= vocab_size) {
      return make_error(ErrorCode::kInvalidArgument,
                        "logit_bias names token {} of a vocabulary of {}", token, vocab_size);
    }
    if (std::isnan(bias)) return refuse("logit_bias", bias, "a number");
  }
  return {};
}

Sampler::Sampler(SamplerOptions options, int vocab_size)
    : options_(std::move(options)), counts_(vocab_size), logits_(vocab_size) {
  candidates_.reserve(vocab_size);
}

void Sampler::accept(TokenId token) { ++counts_[token]; }

void Sampler::forget(TokenId token) {
  CHECK(counts_[token] > 0, "token {} was not counted", token);
  --counts_[token];
}

void Sampler::penalise(std::span<const float> logits) {
  CHECK(logits.size() == logits_.size(), "{} logits for a vocabulary of {}", logits.size(),
        logits_.size());
  std::copy(logits.begin(), logits.end(), logits_.begin());
  const bool penalties = options_.repetition_penalty != 1.0f || options_.presence_penalty != 0.0f ||
                         options_.frequency_penalty != 0.0f;
  for (std::size_t i = 0; penalties && i < logits_.size(); ++i) {
    if (counts_[i] == 0) continue;
    float& logit = logits_[i];
    logit =
        logit > 0.0f ? logit / options_.repetition_penalty : logit * options_.repetition_penalty;
    logit -=
        options_.presence_penalty + options_.frequency_penalty * static_cast<float>(counts_[i]);
  }
  for (const auto& [token, bias] : options_.logit_bias) logits_[token] += bias;
}

double Sampler::next_uniform() {
  return static_cast<double>(split_mix(options_.seed, num_draws_++) >> 11) * 0x1p-53;
}

TokenId Sampler::sample(std::span<const float> logits) {
  penalise(logits);
  const auto best =
      static_cast<TokenId>(std::max_element(logits_.begin(), logits_.end()) - logits_.begin());
  if (options_.temperature == 0.0f) return best;

  // 1. Unnormalised probabilities; the likeliest token is 1.
  candidates_.clear();
  double total = 0.0;
  const float top = logits_[best];
  for (std::size_t i = 0; i < logits_.size(); ++i) {
    const auto p =
        static_cast<float>(std::exp(static_cast<double>(logits_[i] - top) / options_.temperature));
    if (!(p > 0.0f)) continue;
    candidates_.push_back({p, static_cast<TokenId>(i)});
    total += p;
  }
  // 2. Descending order, as far as it is looked at: sorting a large vocabulary for a few tokens
  // would be waste.
  const auto likelier = [](const Candidate& a, const Candidate& b) {
    return a.value != b.value ? a.value > b.value : a.token < b.token;
  };
  std::size_t sorted = std::min(kFirstSort, candidates_.size());
  std::partial_sort(candidates_.begin(), candidates_.begin() + static_cast<std::ptrdiff_t>(sorted),
                    candidates_.end(), likelier);
  const auto sort_rest = [&]() {
    std::sort(candidates_.begin() + static_cast<std::ptrdiff_t>(sorted), candidates_.end(),
              likelier);
    sorted = candidates_.size();
  };
  // 3. How many survive: top-k, then top-p of what top-k left, then min-p.
  std::size_t limit = candidates_.size();
  if (options_.top_k > 0 && static_cast<std::size_t>(options_.top_k) < limit) {
    limit = static_cast<std::size_t>(options_.top_k);
    if (limit > sorted) sort_rest();
    total = 0.0;
    for (std::size_t i = 0; i < limit; ++i) total += candidates_[i].value;
  }
  double kept = 0.0;
  std::size_t survivors = 0;
  while (survivors < limit) {
    if (survivors == sorted) sort_rest();
    const float value = candidates_[survivors].value;
    if (survivors > 0 && (kept >= options_.top_p * total || value < options_.min_p)) break;
    kept += value;
    ++survivors;
  }
  // 4. One draw by inversion.
  double left = next_uniform() * kept;
  for (std::size_t i = 0; i < survivors; ++i) {
    left -= candidates_[i].value;
    if (left < 0.0) return candidates_[i].token;
  }
  return candidates_[survivors - 1].token;
}

}  // namespace stoker
