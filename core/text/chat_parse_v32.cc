// ChatFormatV32::parse(): the strict reading. Deviations go to StreamParser, which forgives them.
#include <algorithm>
#include <optional>
#include <unordered_set>

#include "core/text/chat_format_v32.h"
#include "core/text/chat_markers.h"

namespace stoker {
namespace {

class CompletionParser {
 public:
  CompletionParser(std::string_view text, ThinkingMode mode) : text_(text), mode_(mode) {}

  Result<ChatMessage> parse() {
    ChatMessage message;
    message.role = Role::kAssistant;
    if (mode_ == ThinkingMode::kThinking) {
      const std::optional<std::string_view> reasoning = take_until(markers::kThinkClose);
      if (!reasoning) return fail("the thinking part is not closed");
      message.reasoning_content = *reasoning;
    }
    constexpr std::string_view kBlockStart = "\n\n<｜DSML｜function_calls";
    const std::size_t block = text_.find(kBlockStart, pos_);
    const std::size_t eos = text_.find(markers::kEos, pos_);
    const std::size_t content_end = std::min(block, eos);
    if (content_end == std::string_view::npos) return fail("the end marker is missing");
    message.content = text_.substr(pos_, content_end - pos_);
    pos_ = content_end;
    if (content_end == block) {
      pos_ += kBlockStart.size();
      RETURN_IF_ERROR(parse_calls(message));
    }
    if (pos_ != text_.size() && !take(markers::kEos)) return fail("text after the tool calls");
    if (pos_ != text_.size()) return fail("text after the end marker");
    RETURN_IF_ERROR(check_clean(message.reasoning_content));
    RETURN_IF_ERROR(check_clean(message.content));
    return message;
  }

 private:
  Error fail(std::string_view what) const {
    return make_error(ErrorCode::kInvalidArgument, "malformed answer near byte {}: {}", pos_, what);
  }

  bool take(std::string_view word) {
    if (text_.substr(pos_, word.size()) != word) return false;
    pos_ += word.size();
    return true;
  }

  // The text before the next `stop`, which is skipped too. Empty, and nothing moves, if there is
  // none.
  std::optional<std::string_view> take_until(std::string_view stop) {
    const std::size_t found = text_.find(stop, pos_);
    if (found == std::string_view::npos) return std::nullopt;
    const std::string_view before = text_.substr(pos_, found - pos_);
    pos_ = found + stop.size();
    return before;
  }

  // After the opening tag's name, up to and including the closing tag.
  Status parse_calls(ChatMessage& message) {
    while (true) {
      if (!take(">\n")) return fail("expected '>' and a line break");
      if (take(markers::kBlockClose)) return {};
      if (!take(markers::kInvokeOpen)) return fail("expected a call or the end of the calls");
      ASSIGN_OR_RETURN(ToolCall call, parse_invoke());
      message.tool_calls.push_back(std::move(call));
    }
  }

  Result<ToolCall> parse_invoke() {
    ToolCall call;
    ASSIGN_OR_RETURN(call.name, parse_invoke_head());
    call.arguments += '{';
    std::unordered_set<std::string_view> seen;
    while (take(markers::kParameterOpen)) {
      ASSIGN_OR_RETURN(const std::string_view key, parse_parameter(call.arguments));
      if (!seen.insert(key).second) return fail("a parameter appears twice");
      if (!take(">\n")) return fail("expected '>' and a line break after a parameter");
    }
    if (!take(markers::kInvokeClose)) return fail("expected a parameter or the end of the call");
    call.arguments += '}';
    return call;
  }

  // ` name="N">` and one or two line breaks: a call without parameters has an empty line. Stops
  // before the next tag.
  Result<std::string> parse_invoke_head() {
    const std::size_t end = std::min(next_parameter(), text_.find(markers::kInvokeClose, pos_));
    if (end == std::string_view::npos) return fail("a call without end");
    std::string_view head = text_.substr(pos_, end - pos_);
    const std::size_t start = head.find_first_not_of(" \t\n\r\f\v");
    constexpr std::string_view kName = "name=\"";
    if (start == std::string_view::npos || !head.substr(start).starts_with(kName)) {
      return fail("a call without name");
    }
    head.remove_prefix(start + kName.size());
    if (head.ends_with("\n\n")) head.remove_suffix(1);
    if (!head.ends_with("\">\n")) return fail("the opening of a call is malformed");
    head.remove_suffix(3);
    RETURN_IF_ERROR(check_name(head));
    pos_ = end;
    return std::string(head);
  }

  // The searches for the next parameter are kept, so that many calls without any stay linear.
  std::size_t next_parameter() {
    if (next_parameter_ < pos_) next_parameter_ = text_.find(markers::kParameterOpen, pos_);
    return next_parameter_;
  }

  // Appends `"key": value`; returns the key. Stops before the closing tag's '>'.
  Result<std::string_view> parse_parameter(std::string& arguments) {
    const std::optional<std::string_view> whole = take_until(markers::kParameterClose);
    constexpr std::string_view kName = " name=\"";
    if (!whole || !whole->starts_with(kName)) return fail("a parameter without name or end");
    constexpr std::string_view kTrue = "\" string=\"true\">";
    constexpr std::string_view kFalse = "\" string=\"false\">";
    const std::size_t as_text = whole->find(kTrue, kName.size());
    const std::size_t as_json = whole->find(kFalse, kName.size());
    const std::size_t key_end = std::min(as_text, as_json);
    if (key_end == std::string_view::npos) return fail("a parameter without string=\"true|false\"");
    const std::string_view key = whole->substr(kName.size(), key_end - kName.size());
    RETURN_IF_ERROR(check_name(key));
    if (arguments.size() > 1) arguments += ", ";
    append_json_string(arguments, key);
    arguments += ": ";
    if (key_end == as_text) {
      append_json_string(arguments, whole->substr(key_end + kTrue.size()));
    } else {
      arguments += whole->substr(key_end + kFalse.size());
    }
    return key;
  }

  // The published parser takes names that swallow the markup behind them; no model means that.
  Status check_name(std::string_view name) const {
    if (name.find(markers::kDsml) == std::string_view::npos &&
        name.find(markers::kEos) == std::string_view::npos) {
      return {};
    }
    return fail("markup inside a name");
  }

  Status check_clean(std::string_view text) const {
    for (const std::string_view marker : {markers::kBos, markers::kEos, markers::kThinkOpen,
                                          markers::kThinkClose, markers::kDsml}) {
      if (text.find(marker) != std::string_view::npos) {
        return make_error(ErrorCode::kInvalidArgument, "malformed answer: {} inside the text",
                          marker);
      }
    }
    return {};
  }

  std::string_view text_;
  ThinkingMode mode_;
  std::size_t pos_ = 0;
  std::size_t next_parameter_ = 0;
};

}  // namespace

Result<ChatMessage> ChatFormatV32::parse(std::string_view completion, ThinkingMode mode) const {
  return CompletionParser(completion, mode).parse();
}

}  // namespace stoker
