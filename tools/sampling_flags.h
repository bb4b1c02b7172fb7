// How answers are sampled, as flags: declared once for every command that generates.
#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "core/base/error.h"
#include "core/runtime/sampler.h"

namespace stoker::tools {

// What was not said on the command line is empty and comes from the model's generation_config.json.
struct SamplingFlags {
  bool greedy = false;
  std::optional<float> temperature, top_p, min_p;
  std::optional<int> top_k;
  std::optional<float> repetition_penalty, presence_penalty, frequency_penalty;
  std::vector<std::string> logit_bias;  // "ID=VALUE", checked when parsed
  std::optional<std::uint64_t> seed;    // empty: a new one for every run
};

void add_sampling_flags(CLI::App& app, SamplingFlags& flags);

// The flags over `defaults`, checked: an error names the value and its range.
Result<SamplerOptions> sampler_options(const SamplingFlags& flags, SamplerOptions defaults,
                                       int vocab_size);

}  // namespace stoker::tools
