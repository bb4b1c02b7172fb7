#include "core/text/stream_parser.h"

#include <algorithm>

#include "core/text/chat_markers.h"

namespace stoker {
namespace {

using markers::kEos;

constexpr std::string_view kValueIsText = "\" string=\"true\">";
constexpr std::string_view kValueIsJson = "\" string=\"false\">";
constexpr std::string_view kSpace = " \t\r\n";

std::vector<std::string_view> text_markers() {
  std::vector<std::string_view> all(markers::kNeverShown.begin(), markers::kNeverShown.end());
  all.push_back(markers::kDsmlOpen);
  all.push_back(markers::kDsmlClose);
  return all;
}

// True if more text could turn the end of `text` into a marker.
bool ends_inside_marker(std::string_view text) {
  for (const std::string_view marker : markers::kNeverShown) {
    for (std::size_t n = std::min(marker.size() - 1, text.size()); n > 0; --n) {
      if (text.ends_with(marker.substr(0, n))) return true;
    }
  }
  return false;
}

}  // namespace

StreamStart stream_start(std::string_view prompt) {
  if (const std::size_t last = prompt.rfind(markers::kAssistant); last != std::string_view::npos) {
    prompt.remove_prefix(last);
  }
  const std::size_t open = prompt.rfind(markers::kThinkOpen);
  const std::size_t close = prompt.rfind(markers::kThinkClose);
  const bool thinks =
      open != std::string_view::npos && (close == std::string_view::npos || close < open);
  return thinks ? StreamStart::kReasoning : StreamStart::kContent;
}

void apply_delta(const StreamDelta& delta, ChatMessage& message) {
  using Kind = StreamDelta::Kind;
  switch (delta.kind) {
    case Kind::kReasoning:
      message.reasoning_content += delta.text;
      return;
    case Kind::kContent:
      message.content += delta.text;
      return;
    case Kind::kToolBegin:
      message.tool_calls.push_back({.id = {}, .name = delta.text, .arguments = {}});
      return;
    case Kind::kToolArguments:
      CHECK(!message.tool_calls.empty(), "arguments of call {} before its name", delta.call_idx);
      message.tool_calls.back().arguments += delta.text;
      return;
    case Kind::kToolEnd:
      return;
  }
}

StreamParser::StreamParser(StreamStart start)
    : text_markers_(text_markers()),
      tags_({markers::kDsmlOpen, markers::kDsmlClose, kEos}),
      parameter_close_({markers::kParameterClose}),
      value_openings_({kValueIsText, kValueIsJson}),
      legacy_ends_(
          {markers::kLegacyCallEnd, markers::kLegacyCallBegin, markers::kLegacyCallsEnd, kEos}),
      in_reasoning_(start == StreamStart::kReasoning),
      reasoning_used_(in_reasoning_) {}

void StreamParser::feed(std::string_view piece, std::vector<StreamDelta>& out) {
  if (state_ == State::kDone) return;
  buffer_.append(piece);
  out_ = &out;
  run();
}

void StreamParser::finish(std::vector<StreamDelta>& out) {
  buffer_.close();
  out_ = &out;
  run();
}

void StreamParser::run() {
  while (step()) {
  }
  out_ = nullptr;
}

bool StreamParser::step() {
  switch (state_) {
    case State::kText:
      return step_text();
    case State::kInvokeHead:
      return step_invoke_head();
    case State::kInvokeBody:
      return step_invoke_body();
    case State::kParameterHead:
      return step_parameter_head();
    case State::kParameterValue:
      return step_parameter_value();
    case State::kLegacyCall:
      return step_legacy_call();
    case State::kDone:
      return false;
  }
  return false;
}

// Shows text up to the next marker. Up to two line breaks wait for what follows: in front of a call
// they belong to the call.
bool StreamParser::step_text() {
  skip_after_tag();
  const std::size_t begin = buffer_.begin();
  const std::optional<MarkerFinder::Hit> hit = text_markers_.find(buffer_, begin);
  const std::size_t limit = hit ? hit->pos : text_markers_.safe_end();
  std::size_t shown = limit;
  if (hit || !buffer_.closed()) {
    const std::string_view text = buffer_.view(begin, limit);
    for (int i = 0; i < 2 && shown > begin && text[shown - begin - 1] == '\n'; ++i) --shown;
  }
  emit_text(buffer_.view(begin, shown));
  buffer_.consume_to(shown);
  return hit && text_marker(*hit, shown);
}

// `hit` is next, after the held line breaks from `newlines_from` on.
bool StreamParser::text_marker(const MarkerFinder::Hit& hit, std::size_t newlines_from) {
  if (hit.marker == markers::kDsmlOpen || hit.marker == markers::kDsmlClose) {
    return text_tag(hit, newlines_from);
  }
  const bool is_legacy =
      hit.marker == markers::kLegacyCallsBegin || hit.marker == markers::kLegacyCallBegin;
  if (!is_legacy) emit_text(buffer_.view(newlines_from, hit.pos));
  buffer_.consume_to(hit.end());
  mark_gap();
  if (hit.marker == kEos) {
    state_ = State::kDone;
  } else if (hit.marker == markers::kThinkOpen) {
    open_thinking();
  } else if (hit.marker == markers::kThinkClose) {
    in_reasoning_ = false;
  } else if (hit.marker == markers::kLegacyCallBegin) {
    state_ = State::kLegacyCall;
  } else if (is_legacy || hit.marker == markers::kLegacyCallsEnd) {
    skip_space_ = true;
  }
  return true;
}

bool StreamParser::text_tag(const MarkerFinder::Hit& hit, std::size_t newlines_from) {
  const TagRead tag = read_tag(hit);
  if (tag.kind == Tag::kUndecided) {
    // Cut off inside a tag: nothing that could be shown.
    if (buffer_.closed()) buffer_.consume_to(buffer_.end());
    return false;
  }
  const bool opens = hit.marker == markers::kDsmlOpen;
  if (!opens || tag.kind == Tag::kUnknown) emit_text(buffer_.view(newlines_from, hit.pos));
  buffer_.consume_to(tag.end);
  mark_gap();
  if (opens && tag.kind == Tag::kInvoke) {
    state_ = State::kInvokeHead;
  } else if (opens && tag.kind == Tag::kParameter) {
    state_ = State::kParameterHead;  // of no call: read, but not emitted
  } else if (tag.kind != Tag::kUnknown) {
    skip_bracket_ = skip_space_ = true;
  }
  return true;
}

StreamParser::TagRead StreamParser::read_tag(const MarkerFinder::Hit& hit) const {
  struct Name {
    std::string_view text;
    Tag tag;
  };
  constexpr std::array<Name, 4> kNames = {{{markers::kFunctionCalls, Tag::kBlock},
                                           {"tool_calls", Tag::kBlock},  // V4's name for it
                                           {markers::kInvoke, Tag::kInvoke},
                                           {markers::kParameter, Tag::kParameter}}};
  const std::string_view rest = buffer_.rest_from(hit.end());
  for (const Name& name : kNames) {
    if (rest.starts_with(name.text)) return {name.tag, hit.end() + name.text.size()};
    if (name.text.starts_with(rest)) return {Tag::kUndecided, hit.end()};
  }
  return {Tag::kUnknown, hit.end()};
}

// Thinking opens once, before any visible text. Later on the tag is only taken out: whatever
// follows had better be seen than lost.
void StreamParser::open_thinking() {
  if (reasoning_used_ || content_.has_text) return;
  reasoning_used_ = in_reasoning_ = true;
}

// After a tag of a call, '>' and white space belong to the markup.
void StreamParser::skip_after_tag() {
  if (!skip_space_) return;
  const std::string_view rest = buffer_.rest_from(buffer_.begin());
  std::size_t i = 0;
  for (; i < rest.size(); ++i) {
    if (skip_bracket_ && rest[i] == '>') {
      skip_bracket_ = false;
    } else if (kSpace.find(rest[i]) == std::string_view::npos) {
      skip_space_ = skip_bracket_ = false;
      break;
    }
  }
  buffer_.consume_to(buffer_.begin() + i);
}

void StreamParser::emit(StreamDelta::Kind kind, std::string_view text) {
  const bool of_call = kind != StreamDelta::Kind::kReasoning && kind != StreamDelta::Kind::kContent;
  if (!out_->empty() && kind != StreamDelta::Kind::kToolBegin && out_->back().kind == kind) {
    out_->back().text += text;
    return;
  }
  out_->push_back(
      {.kind = kind, .call_idx = of_call ? num_calls_ - 1 : -1, .text = std::string(text)});
}

// Taking a marker out must not make a new one of the text around it: there a space is put in.
void StreamParser::emit_text(std::string_view text) {
  if (text.empty()) return;
  Channel& channel = in_reasoning_ ? reasoning_ : content_;
  const auto kind = in_reasoning_ ? StreamDelta::Kind::kReasoning : StreamDelta::Kind::kContent;
  if (channel.has_gap && ends_inside_marker(channel.tail)) emit(kind, " ");
  channel.has_gap = false;
  emit(kind, text);
  constexpr std::size_t kTailBytes = 64;  // longer than any marker
  channel.tail += text.substr(text.size() - std::min(text.size(), kTailBytes));
  if (channel.tail.size() > kTailBytes) channel.tail.erase(0, channel.tail.size() - kTailBytes);
  if (text.find_first_not_of(kSpace) != std::string_view::npos) channel.has_text = true;
}

void StreamParser::mark_gap() { reasoning_.has_gap = content_.has_gap = true; }

}  // namespace stoker
