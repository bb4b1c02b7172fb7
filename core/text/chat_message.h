// A conversation as the chat formats take it, and its JSON form (OpenAI's shape). Plain values.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "core/base/error.h"
#include "core/text/json_text.h"

namespace stoker {

enum class Role { kSystem, kDeveloper, kUser, kAssistant, kTool };

std::string_view role_name(Role role);

struct ToolCall {
  std::string id;  // not printed by any format: results are matched by position
  std::string name;
  std::string arguments;  // JSON text; what a model wrote may not be valid JSON
  bool operator==(const ToolCall&) const = default;
};

struct ChatMessage {
  Role role = Role::kUser;
  std::string content;
  std::string reasoning_content;
  std::vector<ToolCall> tool_calls;
  std::string tool_call_id;      // role tool
  std::vector<JsonValue> tools;  // the `function` values of the tools on offer; system, developer
  JsonValue response_format;     // counts if is_truthy(); system, developer
};

struct Conversation {
  std::vector<ChatMessage> context;  // already in the model's cache: sets the state, is not printed
  std::vector<ChatMessage> messages;
};

// `where` names the value in errors, e.g. "messages[2]". Null and missing optional fields are
// empty, unknown fields are ignored, a field of the wrong type is an error that names it.
Result<ChatMessage> message_from_json(const JsonValue& json, std::string_view where);
Result<std::vector<ChatMessage>> messages_from_json(const JsonValue& json, std::string_view where);

// The shape of an answer: always `role`, `content`, `reasoning_content` and `tool_calls`; a call
// has an `id` only if one is set.
JsonValue message_to_json(const ChatMessage& message);

}  // namespace stoker
