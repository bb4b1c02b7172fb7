// DeepSeek-V3.2: tools as DSML tags in the system text, reasoning kept within the current turn.
#pragma once

#include "core/text/chat_format.h"

namespace stoker {

class ChatFormatV32 final : public ChatFormat {
 public:
  std::string_view name() const override { return "v3.2"; }
  Result<std::string> render(const Conversation& conversation,
                             const RenderOptions& options) const override;
  Result<ChatMessage> parse(std::string_view completion, ThinkingMode mode) const override;
};

}  // namespace stoker
