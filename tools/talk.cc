#include "tools/talk.h"

#include <algorithm>
#include <utility>

#include "core/text/generation_config.h"

namespace stoker::tools {
namespace {

std::vector<TokenId> ends_of_answer(const ModelConfig& config, const GenerationConfig& generation,
                                    const Tokenizer& tokenizer) {
  std::vector<TokenId> eos = config.eos_token_id;
  eos.insert(eos.end(), generation.eos_token_id.begin(), generation.eos_token_id.end());
  if (const std::optional<TokenId> id = tokenizer.eos_id()) eos.push_back(*id);
  std::sort(eos.begin(), eos.end());
  eos.erase(std::unique(eos.begin(), eos.end()), eos.end());
  return eos;
}

SamplerOptions published_sampler(const GenerationConfig& generation) {
  SamplerOptions options;
  options.temperature = generation.do_sample ? static_cast<float>(generation.temperature) : 0.0f;
  options.top_p = static_cast<float>(generation.top_p);
  return options;
}

Status check_vocabulary(const ModelConfig& config, const Tokenizer& tokenizer) {
  if (tokenizer.vocab_size() <= config.vocab_size) return {};
  return make_error(ErrorCode::kInvalidArgument,
                    "tokenizer.json has {} tokens, the model's vocab_size is {}: the two files do "
                    "not belong together",
                    tokenizer.vocab_size(), config.vocab_size);
}

}  // namespace

void add_talk_flags(CLI::App& app, TalkFlags& flags) {
  app.add_option("-n,--max-tokens", flags.max_tokens,
                 "Tokens an answer may have (default: as many as the context holds)")
      ->check(CLI::PositiveNumber);
  add_thinking_flag(app, flags.text);
  add_chat_format_flag(app, flags.text);
  add_sampling_flags(app, flags.sampling);
  add_context_flag(app, flags.model);
  add_model_flags(app, flags.model);
}

CLI::Option* add_system_flag(CLI::App& app, TalkFlags& flags) {
  return app.add_option("--system", flags.system, "What the model is told before everything else");
}

CLI::Option* add_tools_flag(CLI::App& app, TalkFlags& flags) {
  return app.add_option("--tools", flags.tools, "Tools on offer: JSON array of OpenAI functions");
}

Result<TalkingModel> load_talking_model(const TalkFlags& flags) {
  TalkingModel talking;
  ASSIGN_OR_RETURN(const std::filesystem::path directory, model_directory(flags.model.model));
  ASSIGN_OR_RETURN(const ModelConfig config, ModelConfig::load(directory));
  ASSIGN_OR_RETURN(TextModel text, load_text_model(directory, flags.text.chat_format));
  RETURN_IF_ERROR(check_vocabulary(config, text.tokenizer), "{}", directory.string());
  ASSIGN_OR_RETURN(const GenerationConfig generation, GenerationConfig::load(directory, config));
  ASSIGN_OR_RETURN(talking.sampler, sampler_options(flags.sampling, published_sampler(generation),
                                                    config.vocab_size));
  talking.eos = ends_of_answer(config, generation, text.tokenizer);
  talking.text.emplace(std::move(text));
  ASSIGN_OR_RETURN(talking.model, load_model(flags.model));
  return talking;
}

}  // namespace stoker::tools
