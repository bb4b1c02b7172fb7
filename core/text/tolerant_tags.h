// Reading what a model wrote badly between the tags of a tool call. Pure functions over short
// texts.
#pragma once

#include <optional>
#include <string>
#include <string_view>

namespace stoker {

// `text` without white space at both ends.
std::string_view trimmed(std::string_view text);

// The value of `key="value"`, also in single quotes or, if something follows, without any. Empty if
// there is no such attribute or its closing quote is missing.
std::optional<std::string> find_attribute(std::string_view tag, std::string_view key);

// The opening of a call after its tag's name: ` name="f">` and perhaps arguments as a JSON object.
struct CallOpening {
  std::string name;       // empty: no usable call
  std::string arguments;  // a JSON object, or empty
};
CallOpening read_call_opening(std::string_view text);

// The same for a parameter whose opening is not as it should be. Empty: no usable parameter.
struct LooseParameter {
  std::string key;
  std::string json;
};
std::optional<LooseParameter> read_loose_parameter(std::string_view text);

// `text` itself if it is JSON, else a JSON string of it.
std::string json_or_string(std::string_view text);

// The inside of a call of V3.1 (`f<｜tool▁sep｜>{...}`) or V3 (type, name, fenced JSON).
CallOpening read_legacy_call(std::string_view text);

}  // namespace stoker
