// The formats before V3.2, for chat and thinking. Their tools are another language: asking for them
// is an error that says so.
#pragma once

#include "core/text/chat_format.h"

namespace stoker {

// V3.1 and V3.2-Exp: a thinking tag after every <｜Assistant｜>, </think> alone in chat mode.
class ChatFormatV31 final : public ChatFormat {
 public:
  std::string_view name() const override { return "v3.1"; }
  Result<std::string> render(const Conversation& conversation,
                             const RenderOptions& options) const override;
  Result<ChatMessage> parse(std::string_view completion, ThinkingMode mode) const override;
};

// R1: thinking mode opens the thinking part; in chat mode the model decides, and may open one
// itself.
class ChatFormatR1 final : public ChatFormat {
 public:
  std::string_view name() const override { return "r1"; }
  Result<std::string> render(const Conversation& conversation,
                             const RenderOptions& options) const override;
  Result<ChatMessage> parse(std::string_view completion, ThinkingMode mode) const override;
};

// V3: no thinking tokens; thinking mode is an error.
class ChatFormatV3 final : public ChatFormat {
 public:
  std::string_view name() const override { return "v3"; }
  Result<std::string> render(const Conversation& conversation,
                             const RenderOptions& options) const override;
  Result<ChatMessage> parse(std::string_view completion, ThinkingMode mode) const override;
};

}  // namespace stoker
