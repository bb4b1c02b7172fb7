#include "core/text/render_case.h"

namespace stoker {
namespace {

Result<const JsonValue*> required(const JsonValue& json, std::string_view key) {
  const JsonValue* value = json.find(key);
  if (value == nullptr) return make_error(ErrorCode::kInvalidArgument, "{}: missing", key);
  return value;
}

Result<std::string> string_field(const JsonValue& json, std::string_view key) {
  ASSIGN_OR_RETURN(const JsonValue* value, required(json, key));
  if (const std::string* text = value->if_string()) return *text;
  return make_error(ErrorCode::kInvalidArgument, "{}: expected a string, found {}", key,
                    value->kind_name());
}

Result<bool> flag_field(const JsonValue& json, std::string_view key, bool otherwise) {
  const JsonValue* value = json.find(key);
  if (value == nullptr) return otherwise;
  if (const bool* flag = value->if_bool()) return *flag;
  return make_error(ErrorCode::kInvalidArgument, "{}: expected a boolean, found {}", key,
                    value->kind_name());
}

Result<ThinkingMode> mode_field(const JsonValue& json) {
  ASSIGN_OR_RETURN(const std::string name, string_field(json, "thinking_mode"));
  return parse_thinking_mode(name);
}

Result<JsonValue> render_case(const ChatFormat& format, const JsonValue& json) {
  RenderOptions options;
  ASSIGN_OR_RETURN(options.mode, mode_field(json));
  ASSIGN_OR_RETURN(options.drop_thinking, flag_field(json, "drop_thinking", true));
  ASSIGN_OR_RETURN(options.add_bos, flag_field(json, "add_default_bos_token", true));
  Conversation conversation;
  ASSIGN_OR_RETURN(const JsonValue* messages, required(json, "messages"));
  ASSIGN_OR_RETURN(conversation.messages, messages_from_json(*messages, "messages"));
  if (const JsonValue* context = json.find("context"); context != nullptr && !context->is_null()) {
    ASSIGN_OR_RETURN(conversation.context, messages_from_json(*context, "context"));
  }
  ASSIGN_OR_RETURN(std::string prompt, format.render(conversation, options));
  return JsonValue(std::move(prompt));
}

Result<JsonValue> parse_case(const ChatFormat& format, const JsonValue& json) {
  ASSIGN_OR_RETURN(const ThinkingMode mode, mode_field(json));
  ASSIGN_OR_RETURN(const std::string completion, string_field(json, "completion"));
  ASSIGN_OR_RETURN(const ChatMessage message, format.parse(completion, mode));
  return message_to_json(message);
}

Result<JsonValue> run_case(const ChatFormat& format, std::string_view line, bool parse) {
  ASSIGN_OR_RETURN(const JsonValue json, parse_json(line));
  if (json.if_object() == nullptr) {
    return make_error(ErrorCode::kInvalidArgument, "expected an object, found {}",
                      json.kind_name());
  }
  return parse ? parse_case(format, json) : render_case(format, json);
}

}  // namespace

std::string render_case_line(const ChatFormat& format, std::string_view line, bool parse) {
  Result<JsonValue> result = run_case(format, line, parse);
  JsonMembers members;
  if (result.ok()) {
    members.emplace_back(parse ? "message" : "prompt", std::move(result).value());
  } else {
    members.emplace_back("error", JsonValue(result.error().message()));
  }
  return to_json_text(JsonValue(std::move(members)));
}

}  // namespace stoker
