// The half of StreamParser that reads tool calls. While the strict parser could still accept the
// text, nothing is read in another way than it would.
#include "core/text/chat_markers.h"
#include "core/text/stream_parser.h"
#include "core/text/tolerant_tags.h"

namespace stoker {
namespace {

constexpr std::string_view kValueIsText = "\" string=\"true\">";
constexpr std::string_view kNameOpening = " name=\"";

// The name in ` name="N">` plus one or two line breaks, exactly as the strict parser demands it.
std::optional<std::string> strict_call_name(std::string_view head) {
  const std::size_t start = head.find_first_not_of(" \t\n\r\f\v");
  constexpr std::string_view kName = "name=\"";
  if (start == std::string_view::npos || !head.substr(start).starts_with(kName))
    return std::nullopt;
  head.remove_prefix(start + kName.size());
  if (head.ends_with("\n\n")) head.remove_suffix(1);
  if (!head.ends_with("\">\n")) return std::nullopt;
  head.remove_suffix(3);
  if (head.find(markers::kDsml) != std::string_view::npos) return std::nullopt;
  return std::string(head);
}

}  // namespace

bool StreamParser::step_invoke_head() {
  const std::size_t begin = buffer_.begin();
  const std::optional<MarkerFinder::Hit> hit = tags_.find(buffer_, begin);
  if (!hit && !buffer_.closed()) return false;
  const std::size_t limit = hit ? hit->pos : buffer_.end();
  const std::string_view head = buffer_.view(begin, limit);
  if (std::optional<std::string> name = strict_call_name(head)) {
    begin_call(*name);
  } else if (CallOpening opening = read_call_opening(head); !opening.name.empty()) {
    begin_call(opening.name);
    if (!opening.arguments.empty()) whole_arguments(opening.arguments);
  }
  buffer_.consume_to(limit);
  state_ = State::kInvokeBody;
  return true;
}

// Text between parameters is lost, but text after a call that nobody closed is shown.
bool StreamParser::step_invoke_body() {
  const std::optional<MarkerFinder::Hit> hit = tags_.find(buffer_, buffer_.begin());
  if (!hit && !buffer_.closed()) return false;
  if (!hit || hit->marker == markers::kEos) {
    leave_call(false);
    return true;
  }
  const TagRead tag = read_tag(*hit);
  const bool opens = hit->marker == markers::kDsmlOpen;
  if (tag.kind == Tag::kUndecided) {
    if (buffer_.closed()) leave_call(false);
    return buffer_.closed();
  }
  if (opens && tag.kind == Tag::kParameter) {
    buffer_.consume_to(tag.end);
    state_ = State::kParameterHead;
  } else if (!opens && tag.kind == Tag::kInvoke) {
    buffer_.consume_to(tag.end);
    leave_call(true);
  } else if (tag.kind == Tag::kInvoke || tag.kind == Tag::kBlock) {
    leave_call(true);
  } else {
    buffer_.consume_to(tag.end);
  }
  return true;
}

bool StreamParser::step_parameter_head() {
  const std::size_t begin = buffer_.begin();
  const std::optional<MarkerFinder::Hit> tag = tags_.find(buffer_, begin);
  const std::string_view rest = buffer_.rest_from(begin);
  if (rest.starts_with(kNameOpening)) {
    const std::size_t key_begin = begin + kNameOpening.size();
    const std::optional<MarkerFinder::Hit> opening = value_openings_.find(buffer_, key_begin);
    if (opening && (!tag || opening->pos < tag->pos)) {
      value_is_text_ = opening->marker == kValueIsText;
      begin_parameter(buffer_.view(key_begin, opening->pos));
      if (value_is_text_) emit_value("\"");
      buffer_.consume_to(opening->end());
      state_ = State::kParameterValue;
      return true;
    }
  }
  if (!tag && !buffer_.closed()) return false;
  const std::size_t limit = tag ? tag->pos : buffer_.end();
  if (const auto parameter = read_loose_parameter(buffer_.view(begin, limit))) {
    begin_parameter(parameter->key);
    emit_value(parameter->json);
  }
  buffer_.consume_to(limit);
  state_ = State::kInvokeBody;  // which passes over the closing tag
  return true;
}

// A value ends at its closing tag and may hold other tags before it. Only when the answer ends
// without a closing tag did the value end at the first of those, which is why text from there on is
// held back.
bool StreamParser::step_parameter_value() {
  const std::size_t begin = buffer_.begin();
  const std::optional<MarkerFinder::Hit> tag = tags_.find(buffer_, begin);
  const std::optional<MarkerFinder::Hit> close = parameter_close_.find(buffer_, begin);
  if (!close && !buffer_.closed()) {
    if (!value_is_text_) return false;
    std::size_t limit = tag ? tag->pos : tags_.safe_end();
    // A line break before a tag that cuts the value off is not part of it.
    const std::string_view text = buffer_.view(begin, limit);
    if (text.ends_with('\n')) --limit;
    emit_text_value(buffer_.view(begin, limit));
    buffer_.consume_to(limit);
    return false;
  }
  const std::size_t limit = close ? close->pos : tag ? tag->pos : buffer_.end();
  std::string_view value = buffer_.view(begin, limit);
  if (!close && value.ends_with('\n')) value.remove_suffix(1);
  if (value_is_text_) {
    emit_text_value(value);
    emit_value("\"");
  } else if (close) {
    emit_value(value);  // valid or not, as the strict parser does
  } else {
    emit_value(json_or_string(value));
  }
  buffer_.consume_to(close ? close->end() : limit);
  state_ = State::kInvokeBody;
  return true;
}

bool StreamParser::step_legacy_call() {
  const std::size_t begin = buffer_.begin();
  const std::optional<MarkerFinder::Hit> hit = legacy_ends_.find(buffer_, begin);
  if (!hit && !buffer_.closed()) return false;
  const std::size_t limit = hit ? hit->pos : buffer_.end();
  if (CallOpening call = read_legacy_call(buffer_.view(begin, limit)); !call.name.empty()) {
    begin_call(call.name);
    if (!call.arguments.empty()) whole_arguments(call.arguments);
  }
  buffer_.consume_to(hit && hit->marker == markers::kLegacyCallEnd ? hit->end() : limit);
  leave_call(hit && hit->marker != markers::kEos);
  return true;
}

void StreamParser::begin_call(std::string_view name) {
  ++num_calls_;
  call_open_ = true;
  emit(StreamDelta::Kind::kToolBegin, name);
}

void StreamParser::leave_call(bool complete) {
  if (call_open_) {
    if (!arguments_whole_) emit(StreamDelta::Kind::kToolArguments, keys_.empty() ? "{}" : "}");
    emit(StreamDelta::Kind::kToolEnd, "");
    out_->back().complete = complete;
  }
  call_open_ = arguments_whole_ = value_muted_ = false;
  keys_.clear();
  skip_bracket_ = skip_space_ = true;
  state_ = State::kText;
}

void StreamParser::begin_parameter(std::string_view key) {
  const bool is_first = keys_.empty();
  value_muted_ = !call_open_ || arguments_whole_ || !keys_.emplace(key).second;
  std::string text = is_first ? "{" : ", ";
  append_json_string(text, key);
  text += ": ";
  emit_value(text);
}

void StreamParser::whole_arguments(std::string_view json) {
  emit(StreamDelta::Kind::kToolArguments, json);
  arguments_whole_ = true;
}

void StreamParser::emit_value(std::string_view json) {
  if (!value_muted_ && !json.empty()) emit(StreamDelta::Kind::kToolArguments, json);
}

void StreamParser::emit_text_value(std::string_view text) {
  std::string escaped;
  append_json_escaped(escaped, text);
  emit_value(escaped);
}

}  // namespace stoker
