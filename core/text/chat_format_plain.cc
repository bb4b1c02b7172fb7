#include "core/text/chat_format_plain.h"

#include <algorithm>

#include "core/text/chat_markers.h"

namespace stoker {
namespace {

// Where the three formats differ.
struct PlainStyle {
  std::string_view name;
  std::string_view chat_opening;      // after <｜Assistant｜> of the answer to come
  std::string_view thinking_opening;  // likewise in thinking mode
  std::string_view history_opening;   // after <｜Assistant｜> of an answer that is printed
  bool assistant_tag_per_turn;  // <｜Assistant｜> only for the first answer after a user message
};

constexpr PlainStyle kV31 = {"v3.1", markers::kThinkClose, markers::kThinkOpen,
                             markers::kThinkClose, true};
constexpr PlainStyle kR1 = {"r1", "", "<think>\n", "", false};
constexpr PlainStyle kV3 = {"v3", "", "", "", false};

Status check_plain(const ChatMessage& message, std::string_view format) {
  const bool wants_tools =
      !message.tools.empty() || !message.tool_calls.empty() || message.role == Role::kTool;
  if (wants_tools) {
    return make_error(ErrorCode::kUnsupported,
                      "tools need the chat format v3.2; this model's format is {}", format);
  }
  if (message.role == Role::kDeveloper) {
    return make_error(ErrorCode::kUnsupported,
                      "the role developer needs the chat format v3.2; this model's format is {}",
                      format);
  }
  if (message.response_format.is_truthy()) {
    return make_error(ErrorCode::kUnsupported,
                      "response_format needs the chat format v3.2; this model's format is {}",
                      format);
  }
  return {};
}

Status check_plain(const Conversation& conversation, std::string_view format) {
  for (const auto* messages : {&conversation.context, &conversation.messages}) {
    for (std::size_t i = 0; i < messages->size(); ++i) {
      RETURN_IF_ERROR(check_plain((*messages)[i], format), "{}[{}]",
                      messages == &conversation.context ? "context" : "messages", i);
    }
  }
  return {};
}

// Stored answers may still carry their reasoning in front; it is never shown to the model again.
std::string_view without_reasoning(std::string_view content) {
  const std::size_t close = content.find(markers::kThinkClose);
  return close == std::string_view::npos ? content
                                         : content.substr(close + markers::kThinkClose.size());
}

// System texts are collected in front, wherever they stand in the conversation.
void append_system_texts(std::string& out, const Conversation& conversation) {
  bool is_first = true;
  for (const ChatMessage& message : conversation.messages) {
    if (message.role != Role::kSystem) continue;
    if (!is_first) out += "\n\n";
    out += message.content;
    is_first = false;
  }
}

Result<std::string> render_plain(const Conversation& conversation, const RenderOptions& options,
                                 const PlainStyle& style) {
  RETURN_IF_ERROR(check_plain(conversation, style.name));
  std::string out;
  if (options.add_bos && conversation.context.empty()) out += markers::kBos;
  append_system_texts(out, conversation);
  bool awaits_answer =
      !conversation.context.empty() && conversation.context.back().role == Role::kUser;
  for (const ChatMessage& message : conversation.messages) {
    if (message.role == Role::kUser) {
      out += markers::kUser;
      out += message.content;
      awaits_answer = true;
    } else if (message.role == Role::kAssistant) {
      if (awaits_answer || !style.assistant_tag_per_turn) {
        out += markers::kAssistant;
        out += style.history_opening;
      }
      out += without_reasoning(message.content);
      out += markers::kEos;
      awaits_answer = false;
    }
  }
  if (awaits_answer) {
    out += markers::kAssistant;
    out += options.mode == ThinkingMode::kThinking ? style.thinking_opening : style.chat_opening;
  }
  return out;
}

// `thinks`: the answer starts inside a thinking part.
Result<ChatMessage> parse_plain(std::string_view text, bool thinks) {
  ChatMessage message;
  message.role = Role::kAssistant;
  if (thinks) {
    const std::size_t close = text.find(markers::kThinkClose);
    if (close == std::string_view::npos) {
      return make_error(ErrorCode::kInvalidArgument, "malformed answer: thinking is not closed");
    }
    message.reasoning_content = text.substr(0, close);
    text.remove_prefix(close + markers::kThinkClose.size());
  }
  const std::size_t eos = text.find(markers::kEos);
  if (eos == std::string_view::npos || eos + markers::kEos.size() != text.size()) {
    return make_error(ErrorCode::kInvalidArgument,
                      "malformed answer: the end marker is missing or not at the end");
  }
  message.content = text.substr(0, eos);
  for (const std::string_view marker : markers::kNeverShown) {
    if (message.content.find(marker) != std::string::npos ||
        message.reasoning_content.find(marker) != std::string::npos) {
      return make_error(ErrorCode::kInvalidArgument, "malformed answer: {} inside the text",
                        marker);
    }
  }
  return message;
}

Error no_thinking() {
  return Error(ErrorCode::kUnsupported, "the chat format v3 has no thinking mode");
}

}  // namespace

Result<std::string> ChatFormatV31::render(const Conversation& conversation,
                                          const RenderOptions& options) const {
  return render_plain(conversation, options, kV31);
}

Result<ChatMessage> ChatFormatV31::parse(std::string_view completion, ThinkingMode mode) const {
  return parse_plain(completion, mode == ThinkingMode::kThinking);
}

Result<std::string> ChatFormatR1::render(const Conversation& conversation,
                                         const RenderOptions& options) const {
  return render_plain(conversation, options, kR1);
}

Result<ChatMessage> ChatFormatR1::parse(std::string_view completion, ThinkingMode mode) const {
  const bool opens_itself =
      mode == ThinkingMode::kChat && completion.starts_with(markers::kThinkOpen);
  if (opens_itself) completion.remove_prefix(markers::kThinkOpen.size());
  return parse_plain(completion, opens_itself || mode == ThinkingMode::kThinking);
}

Result<std::string> ChatFormatV3::render(const Conversation& conversation,
                                         const RenderOptions& options) const {
  if (options.mode == ThinkingMode::kThinking) return no_thinking();
  return render_plain(conversation, options, kV3);
}

Result<ChatMessage> ChatFormatV3::parse(std::string_view completion, ThinkingMode mode) const {
  if (mode == ThinkingMode::kThinking) return no_thinking();
  return parse_plain(completion, false);
}

}  // namespace stoker
