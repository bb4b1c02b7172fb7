#include "tools/conversation_json.h"

#include <cerrno>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <system_error>
#include <utility>

#include "tools/standard_io.h"

namespace stoker::tools {
namespace {

JsonValue tools_to_json(const std::vector<JsonValue>& tools) {
  JsonArray array;
  for (const JsonValue& function : tools) {
    JsonMembers tool;
    tool.emplace_back("type", JsonValue("function"));
    tool.emplace_back("function", function);
    array.emplace_back(std::move(tool));
  }
  return JsonValue(std::move(array));
}

// message_to_json() is the shape of an answer; here is the rest of a message too.
JsonValue whole_message(const ChatMessage& message) {
  JsonMembers members = *message_to_json(message).if_object();
  if (message.role != Role::kAssistant)
    std::erase_if(members, [](const auto& member) {
      return member.first == "reasoning_content" || member.first == "tool_calls";
    });
  if (!message.tool_call_id.empty()) {
    members.emplace_back("tool_call_id", JsonValue(message.tool_call_id));
  }
  if (!message.tools.empty()) members.emplace_back("tools", tools_to_json(message.tools));
  if (message.response_format.is_truthy()) {
    members.emplace_back("response_format", message.response_format);
  }
  return JsonValue(std::move(members));
}

}  // namespace

JsonValue conversation_to_json(const SavedConversation& conversation) {
  JsonArray messages;
  for (const ChatMessage& message : conversation.messages) {
    messages.push_back(whole_message(message));
  }
  JsonMembers members;
  if (conversation.thinking) members.emplace_back("thinking", JsonValue(*conversation.thinking));
  members.emplace_back("messages", JsonValue(std::move(messages)));
  return JsonValue(std::move(members));
}

Result<SavedConversation> conversation_from_json(std::string_view text, std::string_view name) {
  ASSIGN_OR_RETURN(const JsonValue json, parse_json(text), "{}", name);
  SavedConversation conversation;
  const JsonValue* messages = &json;
  if (json.if_object() != nullptr) {
    messages = json.find("messages");
    if (messages == nullptr) {
      return make_error(ErrorCode::kInvalidArgument,
                        "{}: neither an array of messages nor an object with \"messages\"", name);
    }
    const JsonValue* thinking = json.find("thinking");
    if (thinking != nullptr && thinking->if_bool() != nullptr) {
      conversation.thinking = *thinking->if_bool();
    }
  }
  ASSIGN_OR_RETURN(conversation.messages, messages_from_json(*messages, "messages"), "{}", name);
  return conversation;
}

Result<SavedConversation> read_conversation(const std::string& path) {
  ASSIGN_OR_RETURN(const std::string text, read_input(path));
  return conversation_from_json(text, path);
}

Status write_conversation(const SavedConversation& conversation, const std::string& path) {
  const std::string temporary = path + ".new";
  {
    std::ofstream file(temporary, std::ios::binary | std::ios::trunc);
    file << to_json_text(conversation_to_json(conversation)) << '\n';
    file.close();
    if (!file) {
      const std::string why = std::generic_category().message(errno);
      std::error_code ignored;
      std::filesystem::remove(temporary, ignored);
      return make_error(ErrorCode::kIo, "cannot write {}: {}", path, why);
    }
  }
  std::error_code error;
  std::filesystem::rename(temporary, path, error);
  if (!error) return {};
  return make_error(ErrorCode::kIo, "cannot write {}: {}", path, error.message());
}

}  // namespace stoker::tools
