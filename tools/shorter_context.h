// What a refusal for want of memory says of the context.
#pragma once

#include <fmt/format.h>

#include <cstdint>
#include <string>

namespace stoker::tools {

// How a command sets the context.
struct ContextFlag {
  std::string name;       // empty: its input decides
  int tokens_beside = 0;  // that the command adds to the flag's
};

// One item of what could be done, with the comma before it; nothing if no context is short enough
// (`num_tokens` 0, or only what the command adds).
inline std::string shorter_context(std::int64_t num_tokens, const ContextFlag& flag) {
  const std::int64_t num_asked = num_tokens - flag.tokens_beside;
  if (num_asked <= 0) return "";
  return fmt::format(", shorten the context ({} tokens would fit{}{})", num_asked,
                     flag.name.empty() ? "" : ", ", flag.name);
}

}  // namespace stoker::tools
