#include "core/text/chat_format_v32.h"

#include <optional>

#include "core/text/chat_markers.h"

namespace stoker {
namespace {

// What the model was trained to read in front of its tools, blank lines included.
constexpr std::string_view kToolTextHead = R"(## Tools

You have access to a set of tools you can use to answer the user's question.
You can invoke functions by writing a "<｜DSML｜function_calls>" block like the following as part of your reply to the user:
<｜DSML｜function_calls>
<｜DSML｜invoke name="$FUNCTION_NAME">
<｜DSML｜parameter name="$PARAMETER_NAME" string="true|false">$PARAMETER_VALUE</｜DSML｜parameter>
...
</｜DSML｜invoke>
<｜DSML｜invoke name="$FUNCTION_NAME2">
...
</｜DSML｜invoke>
</｜DSML｜function_calls>

String and scalar parameters should be specified as is without any escaping or quotes, while lists and objects should use JSON format. The "string" attribute should be set to "true" for string type parameters and "false" for other types (numbers, booleans, arrays, objects).

If the thinking_mode is enabled, then after function results you should strongly consider outputting a thinking block. Here is an example:

<｜DSML｜function_calls>
...
</｜DSML｜function_calls>

<function_results>
...
</function_results>

<think>...thinking about results</think>

Here are the functions available in JSONSchema format:
<functions>
)";
constexpr std::string_view kToolTextTail = "</functions>\n";

constexpr std::string_view kFormatTextHead =
    "## Response Format:\n\nYou MUST strictly adhere to the following schema to reply:\n";

bool starts_turn(Role role) { return role == Role::kUser || role == Role::kDeveloper; }

// Walks over context and messages, printing the latter.
class Renderer {
 public:
  Renderer(const Conversation& conversation, const RenderOptions& options)
      : conversation_(conversation), thinking_(options.mode == ThinkingMode::kThinking) {
    for (std::size_t i = 0; i < size(); ++i) {
      if (starts_turn(at(i).role)) last_turn_ = i;
    }
  }

  Result<std::string> render(const RenderOptions& options) {
    if (thinking_ && options.drop_thinking) RETURN_IF_ERROR(check_droppable());
    const std::size_t first = conversation_.context.size();
    if (options.add_bos && first == 0) out_ += markers::kBos;
    for (std::size_t i = 0; i < size(); ++i) {
      track_calls(i);
      if (i >= first) RETURN_IF_ERROR(append(i), "messages[{}]", i - first);
    }
    return std::move(out_);
  }

 private:
  std::size_t size() const { return conversation_.context.size() + conversation_.messages.size(); }

  const ChatMessage& at(std::size_t i) const {
    const std::size_t num_context = conversation_.context.size();
    return i < num_context ? conversation_.context[i] : conversation_.messages[i - num_context];
  }

  // The published encoder drops earlier developer messages in this mode and then runs past the end.
  Status check_droppable() const {
    for (std::size_t i = 0; last_turn_ && i < *last_turn_ && !conversation_.messages.empty(); ++i) {
      if (at(i).role == Role::kDeveloper) {
        return make_error(
            ErrorCode::kInvalidArgument,
            "drop_thinking cannot be used with a developer message before the last turn");
      }
    }
    return {};
  }

  // Keeps the assistant message that results belong to, and how many there were so far.
  void track_calls(std::size_t i) {
    if (at(i).role == Role::kTool) {
      ++num_results_;
      return;
    }
    caller_ = at(i).role == Role::kAssistant ? &at(i) : nullptr;
    num_results_ = 0;
  }

  Status append(std::size_t i) {
    const ChatMessage& message = at(i);
    switch (message.role) {
      case Role::kSystem:
        append_system(message);
        return {};
      case Role::kDeveloper:
        return append_developer(message, i);
      case Role::kUser:
        append_turn(message.content, i);
        return {};
      case Role::kAssistant:
        return append_assistant(message, i);
      case Role::kTool:
        return append_result(message, i);
    }
    return {};
  }

  void append_offers(const ChatMessage& message) {
    if (!message.tools.empty()) {
      out_ += "\n\n";
      out_ += kToolTextHead;
      for (const JsonValue& function : message.tools) {
        append_json(out_, function);
        out_ += '\n';
      }
      out_ += kToolTextTail;
    }
    if (message.response_format.is_truthy()) {
      out_ += "\n\n";
      out_ += kFormatTextHead;
      append_json(out_, message.response_format);
    }
  }

  void append_system(const ChatMessage& message) {
    out_ += message.content;
    append_offers(message);
  }

  Status append_developer(const ChatMessage& message, std::size_t i) {
    if (message.content.empty()) {
      return make_error(ErrorCode::kInvalidArgument, "a developer message needs content");
    }
    out_ += markers::kUser;
    append_offers(message);
    out_ += "\n\n# The user's message is: ";
    out_ += message.content;
    out_ += markers::kAssistant;
    append_think_tag(i == last_turn_);
    return {};
  }

  void append_turn(std::string_view content, std::size_t i) {
    out_ += markers::kUser;
    out_ += content;
    out_ += markers::kAssistant;
    append_think_tag(i == last_turn_);
  }

  void append_think_tag(bool is_current) {
    out_ += thinking_ && is_current ? markers::kThinkOpen : markers::kThinkClose;
  }

  Status append_assistant(const ChatMessage& message, std::size_t i) {
    if (thinking_ && (!last_turn_ || i > *last_turn_)) {
      if (message.reasoning_content.empty() && message.tool_calls.empty()) {
        return make_error(ErrorCode::kInvalidArgument,
                          "an answer of the current turn needs reasoning_content or tool_calls");
      }
      out_ += message.reasoning_content;
      out_ += markers::kThinkClose;
    }
    out_ += message.content;
    if (!message.tool_calls.empty()) {
      out_ += "\n\n";
      out_ += markers::kBlockOpen;
      out_ += ">\n";
      for (std::size_t k = 0; k < message.tool_calls.size(); ++k) {
        RETURN_IF_ERROR(append_call(message.tool_calls[k]), "tool_calls[{}]", k);
      }
      out_ += markers::kBlockClose;
    }
    out_ += markers::kEos;
    return {};
  }

  Status append_call(const ToolCall& call) {
    ASSIGN_OR_RETURN(const JsonValue arguments, parse_json(call.arguments), "function.arguments");
    const JsonMembers* members = arguments.if_object();
    if (members == nullptr) {
      return make_error(ErrorCode::kInvalidArgument,
                        "function.arguments: expected a JSON object, found {}",
                        arguments.kind_name());
    }
    out_ += markers::kInvokeOpen;
    out_ += " name=\"" + call.name + "\">\n";
    for (std::size_t i = 0; i < members->size(); ++i) {
      if (i > 0) out_ += '\n';
      append_parameter((*members)[i].first, (*members)[i].second);
    }
    out_ += '\n';
    out_ += markers::kInvokeClose;
    out_ += ">\n";
    return {};
  }

  void append_parameter(const std::string& key, const JsonValue& value) {
    const std::string* text = value.if_string();
    out_ += markers::kParameterOpen;
    out_ += " name=\"" + key + "\" string=\"";
    out_ += text != nullptr ? "true\">" : "false\">";
    if (text != nullptr) {
      out_ += *text;
    } else {
      append_json(out_, value);
    }
    out_ += markers::kParameterClose;
    out_ += '>';
  }

  Status append_result(const ChatMessage& message, std::size_t i) {
    if (caller_ == nullptr) {
      return make_error(ErrorCode::kInvalidArgument, "a tool result without an assistant message");
    }
    const std::size_t num_calls = caller_->tool_calls.size();
    if (num_results_ > num_calls) {
      return make_error(ErrorCode::kInvalidArgument, "tool result {} for {} calls", num_results_,
                        num_calls);
    }
    if (num_results_ == 1) out_ += "\n\n<function_results>";
    out_ += "\n<result>" + message.content + "</result>";
    if (num_results_ == num_calls) {
      out_ += "\n</function_results>\n\n";
      append_think_tag(!last_turn_ || i >= *last_turn_);
    }
    return {};
  }

  const Conversation& conversation_;
  bool thinking_;
  std::optional<std::size_t> last_turn_;
  const ChatMessage* caller_ = nullptr;
  std::size_t num_results_ = 0;
  std::string out_;
};

}  // namespace

Result<std::string> ChatFormatV32::render(const Conversation& conversation,
                                          const RenderOptions& options) const {
  return Renderer(conversation, options).render(options);
}

}  // namespace stoker
