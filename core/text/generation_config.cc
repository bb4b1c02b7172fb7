#include "core/text/generation_config.h"

#include "core/base/file.h"
#include "core/model/json_fields.h"

namespace stoker {
namespace {

constexpr std::size_t kMaxFileBytes = 1 << 20;

GenerationConfig defaults(const ModelConfig& config) {
  GenerationConfig generation;
  generation.bos_token_id = config.bos_token_id;
  generation.eos_token_id = config.eos_token_id;
  return generation;
}

}  // namespace

Result<GenerationConfig> GenerationConfig::parse(std::string_view json, const ModelConfig& config) {
  if (json.size() > kMaxFileBytes) {
    return make_error(ErrorCode::kInvalidArgument, "{} bytes are too many, at most {}", json.size(),
                      kMaxFileBytes);
  }
  ASSIGN_OR_RETURN(const nlohmann::json document, parse_json_object(json));
  JsonFields in(document);
  GenerationConfig generation = defaults(config);
  const std::int64_t last = config.vocab_size - 1;
  generation.do_sample = in.boolean("do_sample", generation.do_sample);
  generation.temperature = in.number("temperature", 0.0, 100.0, generation.temperature);
  generation.top_p = in.positive("top_p", 1.0, generation.top_p);
  generation.bos_token_id =
      static_cast<TokenId>(in.integer("bos_token_id", 0, last, generation.bos_token_id));
  const std::vector<std::int64_t> eos = in.integers(
      "eos_token_id", 0, last, {config.eos_token_id.begin(), config.eos_token_id.end()});
  RETURN_IF_ERROR(in.status());
  generation.eos_token_id.clear();
  for (const std::int64_t id : eos) generation.eos_token_id.push_back(static_cast<TokenId>(id));
  return generation;
}

Result<GenerationConfig> GenerationConfig::load(const std::filesystem::path& dir,
                                                const ModelConfig& config) {
  const std::filesystem::path path = dir / "generation_config.json";
  Result<std::string> text = read_small_file(path, kMaxFileBytes);
  if (!text.ok()) {
    if (text.error().code() == ErrorCode::kNotFound) return defaults(config);
    return std::move(text).error();
  }
  ASSIGN_OR_RETURN(GenerationConfig generation, parse(*text, config), "{}", path.string());
  return generation;
}

}  // namespace stoker
