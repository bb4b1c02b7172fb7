// A conversation as a file: what /save writes, and what /load and --messages read.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "core/text/chat_message.h"
#include "core/text/json_text.h"

namespace stoker::tools {

struct SavedConversation {
  std::vector<ChatMessage> messages;
  std::optional<bool> thinking;
};

// {"thinking": ..., "messages": [...]} with OpenAI messages that lose nothing: tools and response
// format on the system message, reasoning, call ids.
JsonValue conversation_to_json(const SavedConversation& conversation);

// The same back, or a bare array of messages. `name` stands in front of errors.
Result<SavedConversation> conversation_from_json(std::string_view text, std::string_view name);

// From a file; "-" is standard input.
Result<SavedConversation> read_conversation(const std::string& path);

// In place of an existing file only once it is complete.
Status write_conversation(const SavedConversation& conversation, const std::string& path);

}  // namespace stoker::tools
