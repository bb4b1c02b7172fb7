// Result<T>: a value or an Error. What the world can do to us (a missing file, a short read, bad
// input) comes back as a Result and gains a sentence on its way up; what only we can do to
// ourselves is a CHECK (check.h).
#pragma once

#include <fmt/format.h>

#include <optional>
#include <string>
#include <utility>
#include <variant>

#include "core/base/check.h"

namespace stoker {

enum class ErrorCode {
  kInvalidArgument,  // the caller or the user asked for something that makes no sense
  kUsage,            // flags of a command line make no sense, whatever the files and the machine
  kNotFound,         // a file, tensor or field is missing
  kCorrupt,          // bytes that contradict themselves or their description
  kUnsupported,      // well formed, but not something we can do
  kIo,               // the operating system refused or failed
  kResource,         // does not fit: memory, slots, context
  kCancelled,        // a cancel token fired
};

class [[nodiscard]] Error {
 public:
  Error(ErrorCode code, std::string message) : code_(code), message_(std::move(message)) {}

  ErrorCode code() const { return code_; }
  const std::string& message() const { return message_; }

  // Puts "context: " in front of the message.
  Error&& with_context(std::string_view context) && {
    message_ = fmt::format("{}: {}", context, message_);
    return std::move(*this);
  }

 private:
  ErrorCode code_;
  std::string message_;
};

template <typename... Args>
Error make_error(ErrorCode code, fmt::format_string<Args...> format, Args&&... args) {
  return Error(code, fmt::format(format, std::forward<Args>(args)...));
}

template <typename T>
class [[nodiscard]] Result {
 public:
  Result(T value)
      : state_(std::in_place_index<0>, std::move(value)) {}  // NOLINT(google-explicit-constructor)
  Result(Error error)
      : state_(std::in_place_index<1>, std::move(error)) {}  // NOLINT(google-explicit-constructor)

  bool ok() const { return state_.index() == 0; }
  explicit operator bool() const { return ok(); }

  T& value() & {
    CHECK(ok(), "value() of an error: {}", std::get<1>(state_).message());
    return std::get<0>(state_);
  }
  const T& value() const& {
    CHECK(ok(), "value() of an error: {}", std::get<1>(state_).message());
    return std::get<0>(state_);
  }
  T&& value() && {
    CHECK(ok(), "value() of an error: {}", std::get<1>(state_).message());
    return std::move(std::get<0>(state_));
  }
  T& operator*() & { return value(); }
  const T& operator*() const& { return value(); }
  T&& operator*() && { return std::move(*this).value(); }
  T* operator->() { return &value(); }
  const T* operator->() const { return &value(); }

  const Error& error() const& { return std::get<1>(state_); }
  Error&& error() && { return std::move(std::get<1>(state_)); }

 private:
  std::variant<T, Error> state_;
};

template <>
class [[nodiscard]] Result<void> {
 public:
  Result() = default;
  Result(Error error) : error_(std::move(error)) {}  // NOLINT(google-explicit-constructor)

  bool ok() const { return !error_.has_value(); }
  explicit operator bool() const { return ok(); }
  const Error& error() const& { return *error_; }
  Error&& error() && { return std::move(*error_); }

 private:
  std::optional<Error> error_;
};

using Status = Result<void>;

namespace error_internal {
inline Error add_context(Error error) { return error; }
template <typename... Args>
Error add_context(Error error, fmt::format_string<Args...> format, Args&&... args) {
  return std::move(error).with_context(fmt::format(format, std::forward<Args>(args)...));
}
}  // namespace error_internal

}  // namespace stoker

#define STOKER_CONCAT_INNER(a, b) a##b
#define STOKER_CONCAT(a, b) STOKER_CONCAT_INNER(a, b)

// RETURN_IF_ERROR(status_expression[, "context {}", arg...])
#define RETURN_IF_ERROR(expression, ...)                                \
  do {                                                                  \
    if (auto stoker_status = (expression); !stoker_status.ok()) {       \
      return ::stoker::error_internal::add_context(                     \
          std::move(stoker_status).error() __VA_OPT__(, ) __VA_ARGS__); \
    }                                                                   \
  } while (false)

// ASSIGN_OR_RETURN(declaration, result_expression[, "context {}", arg...])
#define ASSIGN_OR_RETURN(declaration, expression, ...)                                      \
  STOKER_ASSIGN_OR_RETURN(STOKER_CONCAT(stoker_result_, __LINE__), declaration, expression, \
                          __VA_ARGS__)
#define STOKER_ASSIGN_OR_RETURN(result, declaration, expression, ...)                     \
  auto result = (expression);                                                             \
  if (!result.ok()) {                                                                     \
    return ::stoker::error_internal::add_context(std::move(result).error() __VA_OPT__(, ) \
                                                     __VA_ARGS__);                        \
  }                                                                                       \
  declaration = std::move(result).value()
