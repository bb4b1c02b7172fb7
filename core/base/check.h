// CHECK(condition[, "format {}", value...]): for mistakes that only we can make. Prints where, what
// and the values, then aborts. Never for input.
#pragma once

#include <fmt/format.h>

#include <string>
#include <utility>

namespace stoker::check_internal {

[[noreturn]] void fail(const char* file, int line, const char* condition,
                       const std::string& values);

inline std::string values() { return {}; }
template <typename... Args>
std::string values(fmt::format_string<Args...> format, Args&&... args) {
  return fmt::format(format, std::forward<Args>(args)...);
}

}  // namespace stoker::check_internal

#define CHECK(condition, ...)                                                        \
  do {                                                                               \
    if (!(condition)) [[unlikely]] {                                                 \
      ::stoker::check_internal::fail(__FILE__, __LINE__, #condition,                 \
                                     ::stoker::check_internal::values(__VA_ARGS__)); \
    }                                                                                \
  } while (false)
