// JSON whose printed form is part of a model's input. Keeps what nlohmann::json forgets: key order,
// whether a number was written as a float, and integers of any size. Prints as Python's
// json.dumps(ensure_ascii=False) does.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "core/base/error.h"

namespace stoker {

class JsonValue;
using JsonArray = std::vector<JsonValue>;
using JsonMembers = std::vector<std::pair<std::string, JsonValue>>;  // in order of appearance

// An integer as its digits, with a leading '-' if negative; never "-0".
struct JsonInteger {
  std::string digits;
  bool operator==(const JsonInteger&) const = default;
};

class JsonValue {
 public:
  JsonValue() = default;  // null
  explicit JsonValue(bool value) : value_(value) {}
  explicit JsonValue(double value) : value_(value) {}
  explicit JsonValue(JsonInteger value) : value_(std::move(value)) {}
  explicit JsonValue(std::string value) : value_(std::move(value)) {}
  explicit JsonValue(std::string_view value) : value_(std::string(value)) {}
  explicit JsonValue(const char* value) : value_(std::string(value)) {}
  explicit JsonValue(JsonArray value) : value_(std::move(value)) {}
  explicit JsonValue(JsonMembers value) : value_(std::move(value)) {}

  bool is_null() const { return std::holds_alternative<std::monostate>(value_); }

  // Null if the value is of another kind.
  const bool* if_bool() const { return std::get_if<bool>(&value_); }
  const double* if_float() const { return std::get_if<double>(&value_); }
  const JsonInteger* if_integer() const { return std::get_if<JsonInteger>(&value_); }
  const std::string* if_string() const { return std::get_if<std::string>(&value_); }
  const JsonArray* if_array() const { return std::get_if<JsonArray>(&value_); }
  const JsonMembers* if_object() const { return std::get_if<JsonMembers>(&value_); }

  // The member of that name; null if there is none or this is no object.
  const JsonValue* find(std::string_view key) const;

  // "an object", "a string", ... for error messages.
  std::string_view kind_name() const;

  // Python's truth value: false for null, false, zero and anything empty.
  bool is_truthy() const;

 private:
  std::variant<std::monostate, bool, double, JsonInteger, std::string, JsonArray, JsonMembers>
      value_;
};

struct JsonLimits {
  std::size_t max_bytes = std::size_t{64} << 20;
  int max_depth = 256;  // nested arrays and objects; printing and destruction recurse as deep
};

// Parses one JSON document, with Python's additions NaN, Infinity and -Infinity. Of duplicate keys
// the last value wins, at the first one's place. Refuses invalid UTF-8 and lone surrogates.
Result<JsonValue> parse_json(std::string_view text, const JsonLimits& limits = {});

// True if parse_json() would accept it.
bool is_json(std::string_view text);

// Separators ", " and ": ", non-ASCII raw, floats in their shortest form with Python's spelling.
std::string to_json_text(const JsonValue& value);
void append_json(std::string& out, const JsonValue& value);

// `text` with JSON's escapes, without and with the quotes around it. Works piece by piece.
void append_json_escaped(std::string& out, std::string_view text);
void append_json_string(std::string& out, std::string_view text);

}  // namespace stoker
