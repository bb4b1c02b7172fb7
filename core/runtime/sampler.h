// Chooses the next token from logits. The same tokens for a seed whatever the thread count or
// batch: randomness is a function of seed and draw number alone.
#pragma once

#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "core/base/error.h"
#include "core/base/ids.h"

namespace stoker {

struct SamplerOptions {
  float temperature = 1.0f;  // 0: greedy
  float top_p = 1.0f;        // smallest set of likeliest tokens with at least this probability
  int top_k = 0;             // this many likeliest tokens; 0: all
  float min_p = 0.0f;        // tokens at least this fraction as likely as the likeliest
  float repetition_penalty =
      1.0f;  // divides positive, multiplies negative logits of tokens seen before
  float presence_penalty = 0.0f;   // subtracted once from tokens seen before
  float frequency_penalty = 0.0f;  // subtracted per occurrence
  std::vector<std::pair<TokenId, float>> logit_bias{};
  std::uint64_t seed = 0;
};

// Refuses values outside their ranges, naming them.
Status validate(const SamplerOptions& options, int vocab_size);

// Order: penalties and bias on the logits; temperature; softmax; top-k, top-p, min-p in that order;
// one draw by inversion over the survivors in descending probability (ties: lower id first). Greedy
// takes the highest penalised logit, the lower id among equals.
class Sampler {
 public:
  Sampler(SamplerOptions options, int vocab_size);

  // `logits` [vocab_size]; allocates nothing. Does not count the token it returns: see accept().
  TokenId sample(std::span<const float> logits);
  // Counts a token of the sequence for the penalties.
  void accept(TokenId token);
  // Undoes accept(), for a rewind.
  void forget(TokenId token);

  const SamplerOptions& options() const { return options_; }

 private:
  struct Candidate {
    float value;
    TokenId token;
  };
  void penalise(std::span<const float> logits);
  double next_uniform();

  SamplerOptions options_;
  std::uint64_t num_draws_ = 0;
  std::vector<std::int32_t> counts_;   // occurrences of each token
  std::vector<float> logits_;          // penalised
  std::vector<Candidate> candidates_;  // scratch
};

}  // namespace stoker
