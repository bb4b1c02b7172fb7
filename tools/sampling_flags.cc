#include "tools/sampling_flags.h"

#include <charconv>
#include <cstdlib>
#include <random>
#include <string_view>
#include <utility>

namespace stoker::tools {
namespace {

std::optional<std::pair<TokenId, float>> parse_bias(const std::string& text) {
  const std::size_t equals = text.find('=');
  if (equals == std::string::npos || equals + 1 == text.size()) return std::nullopt;
  TokenId token = 0;
  const char* const split = text.data() + equals;
  const auto [id_end, id_error] = std::from_chars(text.data(), split, token);
  if (id_error != std::errc() || id_end != split) return std::nullopt;
  char* value_end = nullptr;
  const float value = std::strtof(split + 1, &value_end);
  if (value_end != text.data() + text.size()) return std::nullopt;
  return std::pair(token, value);
}

std::string check_bias(const std::string& text) {
  if (parse_bias(text)) return {};
  return "\"" + text + "\" is no bias; write it as ID=VALUE, for example 1234=-2.5";
}

template <typename T>
void override_with(const std::optional<T>& flag, T& value) {
  if (flag) value = *flag;
}

// All but those that need more than to be copied.
void override_with(const SamplingFlags& flags, SamplerOptions& options) {
  override_with(flags.temperature, options.temperature);
  if (flags.greedy) options.temperature = 0.0f;
  override_with(flags.top_p, options.top_p);
  override_with(flags.top_k, options.top_k);
  override_with(flags.min_p, options.min_p);
  override_with(flags.repetition_penalty, options.repetition_penalty);
  override_with(flags.presence_penalty, options.presence_penalty);
  override_with(flags.frequency_penalty, options.frequency_penalty);
}

std::uint64_t new_seed() {
  std::random_device device;
  return (std::uint64_t{device()} << 32) | device();
}

}  // namespace

void add_sampling_flags(CLI::App& app, SamplingFlags& flags) {
  const char* const kGroup = "Sampling (defaults from the model's generation_config.json)";
  auto* greedy =
      app.add_flag("--greedy", flags.greedy, "Always the likeliest token")->group(kGroup);
  app.add_option("--temperature", flags.temperature, "Flattens (above 1) or sharpens; 0: greedy")
      ->excludes(greedy)
      ->group(kGroup);
  app.add_option("--top-p", flags.top_p, "Likeliest tokens that together reach this probability")
      ->group(kGroup);
  app.add_option("--top-k", flags.top_k, "That many likeliest tokens; 0: all")->group(kGroup);
  app.add_option("--min-p", flags.min_p, "Tokens at least this fraction as likely as the likeliest")
      ->group(kGroup);
  app.add_option("--repetition-penalty", flags.repetition_penalty,
                 "Divides the logits of tokens seen before; 1: off")
      ->group(kGroup);
  app.add_option("--presence-penalty", flags.presence_penalty,
                 "Subtracted once from the logits of tokens seen before; 0: off")
      ->group(kGroup);
  app.add_option("--frequency-penalty", flags.frequency_penalty,
                 "Subtracted for every time a token was seen before; 0: off")
      ->group(kGroup);
  app.add_option("--logit-bias", flags.logit_bias,
                 "ID=VALUE, added to the logit of a token; may be given several times")
      ->allow_extra_args(false)
      ->check(check_bias)
      ->group(kGroup);
  app.add_option("--seed", flags.seed,
                 "The same seed draws the same tokens (default: a new one for every run)")
      ->group(kGroup);
}

Result<SamplerOptions> sampler_options(const SamplingFlags& flags, SamplerOptions defaults,
                                       int vocab_size) {
  // On their own first: what is wrong then does not come from the model's files.
  SamplerOptions alone;
  override_with(flags, alone);
  if (const Status status = validate(alone, vocab_size); !status.ok()) {
    return Error(ErrorCode::kUsage, status.error().message());
  }
  SamplerOptions options = std::move(defaults);
  override_with(flags, options);
  options.seed = flags.seed ? *flags.seed : new_seed();
  for (const std::string& text : flags.logit_bias) {
    const std::optional<std::pair<TokenId, float>> bias = parse_bias(text);
    if (!bias) return Error(ErrorCode::kUsage, check_bias(text));
    options.logit_bias.push_back(*bias);
  }
  RETURN_IF_ERROR(validate(options, vocab_size));
  return options;
}

}  // namespace stoker::tools
