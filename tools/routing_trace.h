// A routing trace: for every token and MoE layer the experts that were chosen, and the ranked
// guesses that were made of them one and two MoE layers before.
//
// As a file it is safetensors, which the usual readers open; T tokens, L layers, k chosen experts,
// g ranked guesses:
//
//   experts  I16 [T, L, k]  best first
//   weights  F32 [T, L, k]  what the experts' outputs were multiplied with; optional
//   guess1   I16 [T, L, g]  of this layer, made at the MoE layer before (of the first: at the dense
//                           layer before it), best first, -1: none
//   guess2   I16 [T, L, g]  made one MoE layer earlier; both absent if g is 0
//   token    I32 [T]        its id; optional
//   purpose  U8  [T]        0 decode or verify, 1 prefill
//   step     I32 [T]        tokens of one forward pass share a number; never falls
//   metadata: format "stoker-routing-trace", version "2", layers "3,4,5" (the model's indices),
//             num_experts, top_k, num_ranked, model (a name for people)
#pragma once

#include <array>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <vector>

#include "core/base/error.h"
#include "core/interface/backend.h"
#include "core/interface/expert_provider.h"
#include "core/model/model_config.h"

namespace stoker::tools {

inline constexpr int kMaxLead = 2;            // guesses reach one and two MoE layers ahead
inline constexpr std::int16_t kNoGuess = -1;  // stands where fewer than num_ranked were made

struct RoutingTrace {
  std::vector<int> layers;  // ascending; L is their number
  int num_experts = 0, top_k = 0, num_ranked = 0;
  std::string model;

  std::vector<std::int16_t> experts;  // [T, L, k]
  std::vector<float> weights;         // [T, L, k] or empty; NaN in layers whose are not known
  std::array<std::vector<std::int16_t>, kMaxLead> guesses;  // [T, L, g] each, by lead - 1
  std::vector<TokenId> token_ids;                           // [T] or empty
  std::vector<Purpose> purpose;                             // [T]
  std::vector<std::int32_t> step;                           // [T]

  std::int64_t num_tokens() const { return std::ssize(step); }
  int num_layers() const { return static_cast<int>(layers.size()); }
  // Place of a model layer in `layers`; -1 if the trace does not have it.
  int place_of(int layer) const;

  // Of one token and place.
  std::span<const std::int16_t> chosen(std::int64_t token, int place) const {
    return row_of(experts, token, place, top_k);
  }
  std::span<const float> chosen_weights(std::int64_t token, int place) const {
    return row_of(weights, token, place, top_k);
  }
  // What was guessed of `place`, and the model layer where it was.
  std::span<const std::int16_t> guessed(int lead, std::int64_t token, int place) const {
    return row_of(guesses[static_cast<std::size_t>(lead - 1)], token, place, num_ranked);
  }
  int made_at(int lead, int place) const {
    return place < lead ? layers.front() - 1 : layers[static_cast<std::size_t>(place - lead)];
  }
  // Whether there can be such a guess: before the first MoE layer only one layer makes any.
  bool has_guess(int lead, int place) const {
    return lead <= place || (lead == place + 1 && layers.front() > 0);
  }

  // Bytes that a token takes here and, header apart, in the file.
  std::int64_t bytes_per_token() const;
  // A trace of the same layers and sizes without tokens.
  RoutingTrace without_tokens() const;
  void reserve(std::int64_t tokens, bool with_weights);
  // Adds the tokens of a trace of the same layers and sizes.
  void append(const RoutingTrace& tail);

 private:
  template <typename T>
  std::span<const T> row_of(const std::vector<T>& all, std::int64_t token, int place,
                            int width) const {
    const std::int64_t begin = (token * num_layers() + place) * width;
    return std::span(all).subspan(static_cast<std::size_t>(begin), static_cast<std::size_t>(width));
  }
};

// Main layers of `config` that have routed experts.
std::vector<int> moe_layers(const ModelConfig& config);

// One file from consecutive pieces of the same layers and sizes, at least one.
Status write_routing_trace(const std::filesystem::path& path, std::span<const RoutingTrace> pieces);

// Trusts nothing: what comes out is complete and every id lies in its range. Errors name the file.
Result<RoutingTrace> read_routing_trace(const std::filesystem::path& path);

// Whether a run of this model could have made the trace: the same MoE layers, experts and top-k.
Status check_trace(const RoutingTrace& trace, const ModelConfig& config);

}  // namespace stoker::tools
