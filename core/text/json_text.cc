#include "core/text/json_text.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <type_traits>

namespace stoker {
namespace {

// Python's repr(): 17 digits at most, an exponent below 1e-4 and from 1e16 on, and always a sign
// that it is a float.
void append_float(std::string& out, double value) {
  if (std::isnan(value)) {
    out += "NaN";
    return;
  }
  if (std::isinf(value)) {
    out += value < 0 ? "-Infinity" : "Infinity";
    return;
  }
  const double magnitude = std::abs(value);
  const bool scientific = magnitude != 0 && (magnitude < 1e-4 || magnitude >= 1e16);
  std::array<char, 64> buffer;
  const auto [end, error] =
      std::to_chars(buffer.data(), buffer.data() + buffer.size(), value,
                    scientific ? std::chars_format::scientific : std::chars_format::fixed);
  CHECK(error == std::errc(), "a double did not fit into {} characters", buffer.size());
  const std::string_view text(buffer.data(), static_cast<std::size_t>(end - buffer.data()));
  out += text;
  if (!scientific && text.find('.') == std::string_view::npos) out += ".0";
}

void append_array(std::string& out, const JsonArray& array) {
  out += '[';
  for (std::size_t i = 0; i < array.size(); ++i) {
    if (i > 0) out += ", ";
    append_json(out, array[i]);
  }
  out += ']';
}

void append_object(std::string& out, const JsonMembers& members) {
  out += '{';
  for (std::size_t i = 0; i < members.size(); ++i) {
    if (i > 0) out += ", ";
    append_json_string(out, members[i].first);
    out += ": ";
    append_json(out, members[i].second);
  }
  out += '}';
}

}  // namespace

const JsonValue* JsonValue::find(std::string_view key) const {
  const JsonMembers* members = if_object();
  if (members == nullptr) return nullptr;
  for (const auto& [name, value] : *members) {
    if (name == key) return &value;
  }
  return nullptr;
}

std::string_view JsonValue::kind_name() const {
  constexpr std::array<std::string_view, 7> kNames = {
      "null", "a boolean", "a number", "a number", "a string", "an array", "an object"};
  static_assert(kNames.size() == std::variant_size_v<decltype(value_)>);
  return kNames[value_.index()];
}

bool JsonValue::is_truthy() const {
  if (is_null()) return false;
  if (const bool* value = if_bool()) return *value;
  if (const double* value = if_float()) return *value != 0;
  if (const JsonInteger* value = if_integer()) return value->digits != "0";
  if (const std::string* value = if_string()) return !value->empty();
  if (const JsonArray* value = if_array()) return !value->empty();
  return !if_object()->empty();
}

bool is_json(std::string_view text) { return parse_json(text).ok(); }

std::string to_json_text(const JsonValue& value) {
  std::string out;
  append_json(out, value);
  return out;
}

void append_json(std::string& out, const JsonValue& value) {
  if (value.is_null()) out += "null";
  if (const bool* flag = value.if_bool()) out += *flag ? "true" : "false";
  if (const double* number = value.if_float()) append_float(out, *number);
  if (const JsonInteger* number = value.if_integer()) out += number->digits;
  if (const std::string* text = value.if_string()) append_json_string(out, *text);
  if (const JsonArray* array = value.if_array()) append_array(out, *array);
  if (const JsonMembers* members = value.if_object()) append_object(out, *members);
}

void append_json_escaped(std::string& out, std::string_view text) {
  constexpr std::string_view kHex = "0123456789abcdef";
  for (const char c : text) {
    switch (c) {
      case '"':
        out += "\\\"";
        break;
      case '\\':
        out += "\\\\";
        break;
      case '\n':
        out += "\\n";
        break;
      case '\r':
        out += "\\r";
        break;
      case '\t':
        out += "\\t";
        break;
      case '\b':
        out += "\\b";
        break;
      case '\f':
        out += "\\f";
        break;
      default:
        if (const auto byte = static_cast<unsigned char>(c); byte < 0x20) {
          out += "\\u00";
          out += kHex[byte >> 4];
          out += kHex[byte & 15];
        } else {
          out += c;
        }
    }
  }
}

void append_json_string(std::string& out, std::string_view text) {
  out += '"';
  append_json_escaped(out, text);
  out += '"';
}

}  // namespace stoker
