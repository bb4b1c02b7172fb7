// Typed, range-checked access to the fields of a JSON object. The first thing that is wrong stays
// in status(); reads after it return harmless values, so a caller reads all fields and asks once.
// For small documents (configs): they are held as a tree.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "core/base/error.h"

namespace stoker {

// Parses a JSON object. Errors give line and column.
Result<nlohmann::json> parse_json_object(std::string_view text);

// A value as JSON for a message, shortened.
std::string shown(const nlohmann::json& value);

class JsonFields {
 public:
  // `object` must outlive this. `prefix` stands before field names in messages: "rope_scaling.".
  explicit JsonFields(const nlohmann::json& object, std::string prefix = {})
      : object_(object), prefix_(std::move(prefix)) {}

  // Null counts as absent. Without `fallback` an absent field is an error.
  std::int64_t integer(std::string_view name, std::int64_t min, std::int64_t max,
                       std::optional<std::int64_t> fallback = {});
  // A whole number or a list of at least one.
  std::vector<std::int64_t> integers(std::string_view name, std::int64_t min, std::int64_t max,
                                     std::vector<std::int64_t> fallback);
  double number(std::string_view name, double min, double max, std::optional<double> fallback = {});
  // Greater than 0.
  double positive(std::string_view name, double max, std::optional<double> fallback = {});
  bool boolean(std::string_view name, bool fallback);
  std::string text(std::string_view name, const std::optional<std::string>& fallback = {});
  // The field's value, or null if absent.
  const nlohmann::json* find(std::string_view name) const;

  void fail(Error error) {
    if (status_.ok()) status_ = std::move(error);
  }
  const Status& status() const { return status_; }

 private:
  bool is_integer_in(const nlohmann::json& value, std::int64_t min, std::int64_t max) const;
  const nlohmann::json* required(std::string_view name, bool has_fallback);

  const nlohmann::json& object_;
  std::string prefix_;
  Status status_;
};

}  // namespace stoker
