// What a refusal for want of memory says of the context.
#pragma once

#include <fmt/format.h>

#include <cstdint>
#include <string>

#include "core/runtime/kv_pool.h"

namespace stoker::tools {

// How a command sets the context.
struct ContextFlag {
  std::string name;       // empty: its input decides
  int tokens_beside = 0;  // that the command adds to the flag's
};

// Tokens of context whose keys take at most `bytes`, whole pages; `kv_bytes` is what those of
// `context_tokens` take.
inline std::int64_t tokens_that_fit(std::int64_t bytes, std::int64_t kv_bytes, int context_tokens) {
  const std::int64_t page_bytes = kv_bytes / pages_for(context_tokens);
  return bytes > 0 ? bytes / page_bytes * kPageTokens : 0;
}

// One item of what could be done, with the comma before it; nothing if no context is short enough
// (`num_tokens` 0, or only what the command adds).
inline std::string shorter_context(std::int64_t num_tokens, const ContextFlag& flag) {
  const std::int64_t num_asked = num_tokens - flag.tokens_beside;
  if (num_asked <= 0) return "";
  return fmt::format(", shorten the context ({} tokens would fit{}{})", num_asked,
                     flag.name.empty() ? "" : ", ", flag.name);
}

}  // namespace stoker::tools
