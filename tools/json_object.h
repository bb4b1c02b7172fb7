// Builds JSON objects whose members stay in the order they were added.
#pragma once

#include <concepts>
#include <string>
#include <string_view>
#include <utility>

#include "core/text/json_text.h"

namespace stoker::tools {

inline JsonValue json_of(JsonValue value) { return value; }
inline JsonValue json_of(bool value) { return JsonValue(value); }
inline JsonValue json_of(double value) { return JsonValue(value); }
inline JsonValue json_of(std::string_view value) { return JsonValue(value); }
inline JsonValue json_of(const char* value) { return JsonValue(value); }
template <std::integral T>
JsonValue json_of(T value) {
  return JsonValue(JsonInteger{std::to_string(value)});
}

// A range of things that json_of() takes.
template <typename Range>
JsonValue json_array(const Range& range) {
  JsonArray array;
  for (const auto& value : range) array.push_back(json_of(value));
  return JsonValue(std::move(array));
}

class JsonObject {
 public:
  template <typename T>
  JsonObject& add(std::string_view key, T&& value) {
    members_.emplace_back(std::string(key), json_of(std::forward<T>(value)));
    return *this;
  }
  JsonObject& add(std::string_view key, JsonObject value) {
    return add(key, std::move(value).build());
  }
  JsonValue build() && { return JsonValue(std::move(members_)); }

 private:
  JsonMembers members_;
};

}  // namespace stoker::tools
