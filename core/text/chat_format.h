// How a conversation becomes a prompt, and how a well-formed answer becomes a message again. The
// tolerant, streaming counterpart of parse() is stream_parser.h.
#pragma once

#include <memory>
#include <string>
#include <string_view>

#include "core/base/error.h"
#include "core/text/chat_message.h"

namespace stoker {

enum class ThinkingMode { kChat, kThinking };

// "chat" or "thinking".
Result<ThinkingMode> parse_thinking_mode(std::string_view name);

struct RenderOptions {
  ThinkingMode mode = ThinkingMode::kChat;
  bool drop_thinking =
      true;             // V3.2's flag of that name: refuses developer messages before the last turn
  bool add_bos = true;  // only looked at when the conversation has no context
};

// Immutable; may be shared between threads.
class ChatFormat {
 public:
  virtual ~ChatFormat() = default;

  // As the user names it: "v3.2", "v3.1", "r1" or "v3".
  virtual std::string_view name() const = 0;

  // The exact prompt, markers written out as text, with the opening of the answer at its end. What
  // a format cannot express (tools before v3.2) is an error, never left out.
  virtual Result<std::string> render(const Conversation& conversation,
                                     const RenderOptions& options) const = 0;

  // Strict: `completion` is what the model wrote after the prompt, with the end marker; anything
  // that is not well formed is an error.
  virtual Result<ChatMessage> parse(std::string_view completion, ThinkingMode mode) const = 0;
};

// What tells the formats apart: config.json and the tokenizer's added tokens.
struct ChatModelFacts {
  std::string model_type{};        // config.json
  std::string scale_fmt{};         // config.json quantization_config.scale_fmt; empty if absent
  bool has_dsml_token = false;     // "｜DSML｜"
  bool has_think_tokens = false;   // "<think>", "</think>"
  bool has_search_tokens = false;  // "<｜search▁begin｜>", "<｜search▁end｜>"
};

// The name of the format the model was trained with. V3.2-Exp says deepseek_v32 but talks as V3.1
// does.
std::string_view detect_chat_format(const ChatModelFacts& facts);

// `name`: "auto" (decided by `facts`) or a format's name.
Result<std::unique_ptr<ChatFormat>> make_chat_format(std::string_view name,
                                                     const ChatModelFacts& facts = {});

}  // namespace stoker
