#include "core/text/tolerant_tags.h"

#include "core/text/chat_markers.h"
#include "core/text/json_text.h"

namespace stoker {
namespace {

constexpr std::string_view kBlanks = " \t\r\n";

std::string_view without_fence(std::string_view text) {
  text = trimmed(text);
  constexpr std::string_view kFence = "```";
  if (!text.starts_with(kFence)) return text;
  const std::size_t line_end = text.find('\n');
  text.remove_prefix(line_end == std::string_view::npos ? kFence.size() : line_end + 1);
  if (text.ends_with(kFence)) text.remove_suffix(kFence.size());
  return trimmed(text);
}

}  // namespace

std::string_view trimmed(std::string_view text) {
  const std::size_t first = text.find_first_not_of(kBlanks);
  if (first == std::string_view::npos) return {};
  return text.substr(first, text.find_last_not_of(kBlanks) - first + 1);
}

std::optional<std::string> find_attribute(std::string_view tag, std::string_view key) {
  const std::string wanted = std::string(key) + "=";
  const std::size_t found = tag.find(wanted);
  if (found == std::string_view::npos) return std::nullopt;
  std::string_view value = tag.substr(found + wanted.size());
  if (value.starts_with('"') || value.starts_with('\'')) {
    const char quote = value.front();
    value.remove_prefix(1);
    const std::size_t end = value.find(quote);
    if (end == std::string_view::npos) return std::nullopt;
    return std::string(value.substr(0, end));
  }
  const std::size_t end = value.find_first_of(" \t\r\n>");
  if (end == std::string_view::npos) return std::nullopt;
  return std::string(value.substr(0, end));
}

CallOpening read_call_opening(std::string_view text) {
  CallOpening opening;
  opening.name = find_attribute(text, "name").value_or("");
  if (opening.name.find(markers::kDsml) != std::string::npos) opening.name.clear();
  const std::size_t tag_end = text.find('>');
  if (tag_end == std::string_view::npos) return opening;
  const std::string_view body = without_fence(text.substr(tag_end + 1));
  if (body.starts_with('{') && is_json(body)) opening.arguments = body;
  return opening;
}

std::optional<LooseParameter> read_loose_parameter(std::string_view text) {
  const std::size_t tag_end = text.find('>');
  if (tag_end == std::string_view::npos) return std::nullopt;
  const std::string_view tag = text.substr(0, tag_end + 1);
  const std::optional<std::string> key = find_attribute(tag, "name");
  if (!key) return std::nullopt;
  const std::string_view value = text.substr(tag_end + 1);
  const std::string kind = find_attribute(tag, "string").value_or("");
  if (kind != "true" && kind != "True") return LooseParameter{*key, json_or_string(value)};
  std::string json;
  append_json_string(json, value);
  return LooseParameter{*key, std::move(json)};
}

std::string json_or_string(std::string_view text) {
  if (is_json(text)) return std::string(trimmed(text));
  std::string json;
  append_json_string(json, text);
  return json;
}

CallOpening read_legacy_call(std::string_view text) {
  CallOpening opening;
  const std::size_t sep = text.find(markers::kLegacySep);
  if (sep == std::string_view::npos) return opening;
  std::string_view name = trimmed(text.substr(0, sep));
  std::string_view rest = text.substr(sep + markers::kLegacySep.size());
  if (const std::size_t line_end = rest.find('\n');
      name == "function" && !trimmed(rest).starts_with('{') && line_end != std::string_view::npos) {
    name = trimmed(rest.substr(0, line_end));
    rest.remove_prefix(line_end);
  }
  opening.name = name;
  opening.arguments = without_fence(rest);
  return opening;
}

}  // namespace stoker
