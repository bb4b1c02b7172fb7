#include "core/text/chat_message.h"

#include <array>
#include <optional>

namespace stoker {
namespace {

constexpr std::array kRoles = {Role::kSystem, Role::kDeveloper, Role::kUser, Role::kAssistant,
                               Role::kTool};

Error wrong_type(std::string_view where, std::string_view expected, const JsonValue& found) {
  return make_error(ErrorCode::kInvalidArgument, "{}: expected {}, found {}", where, expected,
                    found.kind_name());
}

// A missing or null member is an empty string.
Result<std::string> optional_string(const JsonValue& json, std::string_view key,
                                    std::string_view where) {
  const JsonValue* value = json.find(key);
  if (value == nullptr || value->is_null()) return std::string();
  if (const std::string* text = value->if_string()) return *text;
  return wrong_type(fmt::format("{}.{}", where, key), "a string", *value);
}

Result<std::string> required_string(const JsonValue& json, std::string_view key,
                                    std::string_view where) {
  const JsonValue* value = json.find(key);
  if (value == nullptr) {
    return make_error(ErrorCode::kInvalidArgument, "{}.{}: missing", where, key);
  }
  if (const std::string* text = value->if_string()) return *text;
  return wrong_type(fmt::format("{}.{}", where, key), "a string", *value);
}

// The `function` object of a tool or of a call.
Result<const JsonValue*> function_of(const JsonValue& json, std::string_view where) {
  if (json.if_object() == nullptr) return wrong_type(where, "an object", json);
  const JsonValue* function = json.find("function");
  if (function == nullptr) {
    return make_error(ErrorCode::kInvalidArgument, "{}.function: missing", where);
  }
  if (function->if_object() == nullptr) {
    return wrong_type(fmt::format("{}.function", where), "an object", *function);
  }
  return function;
}

Result<ToolCall> tool_call_from_json(const JsonValue& json, std::string_view where) {
  ASSIGN_OR_RETURN(const JsonValue* function, function_of(json, where));
  const std::string inner = fmt::format("{}.function", where);
  ToolCall call;
  ASSIGN_OR_RETURN(call.id, optional_string(json, "id", where));
  ASSIGN_OR_RETURN(call.name, required_string(*function, "name", inner));
  ASSIGN_OR_RETURN(call.arguments, required_string(*function, "arguments", inner));
  return call;
}

// A missing or null member is an empty array.
Result<const JsonArray*> optional_array(const JsonValue& json, std::string_view key,
                                        std::string_view where) {
  const JsonValue* value = json.find(key);
  if (value == nullptr || value->is_null()) return static_cast<const JsonArray*>(nullptr);
  if (const JsonArray* array = value->if_array()) return array;
  return wrong_type(fmt::format("{}.{}", where, key), "an array", *value);
}

Result<Role> role_from_json(const JsonValue& json, std::string_view where) {
  ASSIGN_OR_RETURN(const std::string name, required_string(json, "role", where));
  for (const Role role : kRoles) {
    if (role_name(role) == name) return role;
  }
  return make_error(ErrorCode::kInvalidArgument, "{}.role: unknown role \"{}\"", where, name);
}

}  // namespace

std::string_view role_name(Role role) {
  switch (role) {
    case Role::kSystem:
      return "system";
    case Role::kDeveloper:
      return "developer";
    case Role::kUser:
      return "user";
    case Role::kAssistant:
      return "assistant";
    case Role::kTool:
      return "tool";
  }
  CHECK(false, "role {}", static_cast<int>(role));
  return {};
}

Result<ChatMessage> message_from_json(const JsonValue& json, std::string_view where) {
  if (json.if_object() == nullptr) return wrong_type(where, "an object", json);
  ChatMessage message;
  ASSIGN_OR_RETURN(message.role, role_from_json(json, where));
  ASSIGN_OR_RETURN(message.content, optional_string(json, "content", where));
  ASSIGN_OR_RETURN(message.reasoning_content, optional_string(json, "reasoning_content", where));
  ASSIGN_OR_RETURN(message.tool_call_id, optional_string(json, "tool_call_id", where));
  ASSIGN_OR_RETURN(const JsonArray* calls, optional_array(json, "tool_calls", where));
  for (std::size_t i = 0; calls != nullptr && i < calls->size(); ++i) {
    ASSIGN_OR_RETURN(ToolCall call,
                     tool_call_from_json((*calls)[i], fmt::format("{}.tool_calls[{}]", where, i)));
    message.tool_calls.push_back(std::move(call));
  }
  ASSIGN_OR_RETURN(const JsonArray* tools, optional_array(json, "tools", where));
  for (std::size_t i = 0; tools != nullptr && i < tools->size(); ++i) {
    ASSIGN_OR_RETURN(const JsonValue* function,
                     function_of((*tools)[i], fmt::format("{}.tools[{}]", where, i)));
    message.tools.push_back(*function);
  }
  if (const JsonValue* format = json.find("response_format")) message.response_format = *format;
  return message;
}

Result<std::vector<ChatMessage>> messages_from_json(const JsonValue& json, std::string_view where) {
  const JsonArray* array = json.if_array();
  if (array == nullptr) return wrong_type(where, "an array", json);
  std::vector<ChatMessage> messages;
  messages.reserve(array->size());
  for (std::size_t i = 0; i < array->size(); ++i) {
    ASSIGN_OR_RETURN(ChatMessage message,
                     message_from_json((*array)[i], fmt::format("{}[{}]", where, i)));
    messages.push_back(std::move(message));
  }
  return messages;
}

JsonValue message_to_json(const ChatMessage& message) {
  JsonArray calls;
  for (const ToolCall& call : message.tool_calls) {
    JsonMembers function;
    function.emplace_back("name", JsonValue(call.name));
    function.emplace_back("arguments", JsonValue(call.arguments));
    JsonMembers entry;
    if (!call.id.empty()) entry.emplace_back("id", JsonValue(call.id));
    entry.emplace_back("type", JsonValue("function"));
    entry.emplace_back("function", JsonValue(std::move(function)));
    calls.emplace_back(std::move(entry));
  }
  JsonMembers members;
  members.emplace_back("role", JsonValue(role_name(message.role)));
  members.emplace_back("content", JsonValue(message.content));
  members.emplace_back("reasoning_content", JsonValue(message.reasoning_content));
  members.emplace_back("tool_calls", JsonValue(std::move(calls)));
  return JsonValue(std::move(members));
}

}  // namespace stoker
