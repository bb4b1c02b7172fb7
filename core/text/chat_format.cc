#include "core/text/chat_format.h"

#include "core/text/chat_format_plain.h"
#include "core/text/chat_format_v32.h"

namespace stoker {

Result<ThinkingMode> parse_thinking_mode(std::string_view name) {
  if (name == "chat") return ThinkingMode::kChat;
  if (name == "thinking") return ThinkingMode::kThinking;
  return make_error(ErrorCode::kInvalidArgument,
                    "thinking_mode: \"{}\" is neither \"chat\" nor \"thinking\"", name);
}

std::string_view detect_chat_format(const ChatModelFacts& facts) {
  if (facts.has_dsml_token) return "v3.2";
  if (facts.model_type == "deepseek_v32") return "v3.1";
  if (facts.scale_fmt == "ue8m0" || facts.has_search_tokens) return "v3.1";
  if (facts.has_think_tokens) return "r1";
  return "v3";
}

Result<std::unique_ptr<ChatFormat>> make_chat_format(std::string_view name,
                                                     const ChatModelFacts& facts) {
  if (name == "auto") name = detect_chat_format(facts);
  if (name == "v3.2") return std::unique_ptr<ChatFormat>(std::make_unique<ChatFormatV32>());
  if (name == "v3.1") return std::unique_ptr<ChatFormat>(std::make_unique<ChatFormatV31>());
  if (name == "r1") return std::unique_ptr<ChatFormat>(std::make_unique<ChatFormatR1>());
  if (name == "v3") return std::unique_ptr<ChatFormat>(std::make_unique<ChatFormatV3>());
  return make_error(ErrorCode::kInvalidArgument,
                    "unknown chat format \"{}\"; known are auto, v3.2, v3.1, r1, v3", name);
}

}  // namespace stoker
