#include "core/model/json_fields.h"

#include <algorithm>

namespace stoker {

Result<nlohmann::json> parse_json_object(std::string_view text) {
  try {
    nlohmann::json document = nlohmann::json::parse(text);
    if (!document.is_object()) {
      return make_error(ErrorCode::kInvalidArgument, "must be a JSON object, is {}",
                        shown(document));
    }
    return document;
  } catch (const nlohmann::json::exception& e) {
    // "[json.exception.parse_error.101] parse error at line 1, column 2: ..."
    const std::string_view what = e.what();
    const std::size_t tag_end = what.find("] ");
    return make_error(ErrorCode::kInvalidArgument, "not valid JSON: {}",
                      tag_end == std::string_view::npos ? what : what.substr(tag_end + 2));
  }
}

std::string shown(const nlohmann::json& value) {
  constexpr std::size_t kMaxShown = 60;
  // Only flat and short containers are spelled out: dump() recurses into what the file nests.
  const bool nested = std::any_of(value.begin(), value.end(),
                                  [](const auto& item) { return item.is_structured(); });
  if (value.is_structured() && (nested || value.size() > kMaxShown)) {
    return fmt::format("{} of {}", value.is_array() ? "a list" : "an object", value.size());
  }
  std::string dumped = value.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
  if (dumped.size() > kMaxShown) dumped = dumped.substr(0, kMaxShown) + "...";
  return dumped;
}

const nlohmann::json* JsonFields::find(std::string_view name) const {
  const auto it = object_.find(name);
  return it == object_.end() || it->is_null() ? nullptr : &*it;
}

const nlohmann::json* JsonFields::required(std::string_view name, bool has_fallback) {
  const nlohmann::json* value = find(name);
  if (value == nullptr && !has_fallback) {
    fail(make_error(ErrorCode::kNotFound, "{}{} is missing", prefix_, name));
  }
  return value;
}

bool JsonFields::is_integer_in(const nlohmann::json& value, std::int64_t min,
                               std::int64_t max) const {
  if (!value.is_number_integer()) return false;
  if (value.is_number_unsigned() &&
      value.get<std::uint64_t>() > static_cast<std::uint64_t>(INT64_MAX)) {
    return false;
  }
  return value.get<std::int64_t>() >= min && value.get<std::int64_t>() <= max;
}

std::int64_t JsonFields::integer(std::string_view name, std::int64_t min, std::int64_t max,
                                 std::optional<std::int64_t> fallback) {
  const nlohmann::json* value = required(name, fallback.has_value());
  if (value == nullptr) return fallback.value_or(min);
  if (is_integer_in(*value, min, max)) return value->get<std::int64_t>();
  fail(make_error(ErrorCode::kInvalidArgument, "{}{} must be a whole number from {} to {}, is {}",
                  prefix_, name, min, max, shown(*value)));
  return min;
}

std::vector<std::int64_t> JsonFields::integers(std::string_view name, std::int64_t min,
                                               std::int64_t max,
                                               std::vector<std::int64_t> fallback) {
  const nlohmann::json* value = find(name);
  if (value == nullptr) return fallback;
  if (!value->is_array()) return {integer(name, min, max)};
  std::vector<std::int64_t> numbers;
  for (const nlohmann::json& item : *value) {
    if (!is_integer_in(item, min, max)) {
      fail(make_error(ErrorCode::kInvalidArgument,
                      "{}{} must hold whole numbers from {} to {}, has {}", prefix_, name, min, max,
                      shown(item)));
      return fallback;
    }
    numbers.push_back(item.get<std::int64_t>());
  }
  if (numbers.empty()) {
    fail(make_error(ErrorCode::kInvalidArgument, "{}{} is an empty list", prefix_, name));
  }
  return numbers;
}

double JsonFields::number(std::string_view name, double min, double max,
                          std::optional<double> fallback) {
  const nlohmann::json* value = required(name, fallback.has_value());
  if (value == nullptr) return fallback.value_or(max);
  if (value->is_number()) {
    const double number = value->get<double>();
    if (number >= min && number <= max) return number;
  }
  fail(make_error(ErrorCode::kInvalidArgument, "{}{} must be a number from {} to {}, is {}",
                  prefix_, name, min, max, shown(*value)));
  return max;
}

double JsonFields::positive(std::string_view name, double max, std::optional<double> fallback) {
  const double value = number(name, 0.0, max, fallback);
  if (value > 0.0) return value;
  fail(make_error(ErrorCode::kInvalidArgument, "{}{} must be greater than 0", prefix_, name));
  return max;
}

bool JsonFields::boolean(std::string_view name, bool fallback) {
  const nlohmann::json* value = find(name);
  if (value == nullptr) return fallback;
  if (value->is_boolean()) return value->get<bool>();
  fail(make_error(ErrorCode::kInvalidArgument, "{}{} must be true or false, is {}", prefix_, name,
                  shown(*value)));
  return fallback;
}

std::string JsonFields::text(std::string_view name, const std::optional<std::string>& fallback) {
  const nlohmann::json* value = required(name, fallback.has_value());
  if (value == nullptr) return fallback.value_or("");
  if (value->is_string()) return value->get<std::string>();
  fail(make_error(ErrorCode::kInvalidArgument, "{}{} must be a string, is {}", prefix_, name,
                  shown(*value)));
  return fallback.value_or("");
}

}  // namespace stoker
