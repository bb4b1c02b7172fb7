// What a refusal for want of memory says of the context.
#pragma once

#include <fmt/format.h>

#include <string>
#include <string_view>

namespace stoker::tools {

// One item of what could be done, with the comma before it; nothing if no context is short enough
// (0). `flag` of the command, which is empty where the input decides.
inline std::string shorter_context(int num_tokens, std::string_view flag) {
  if (num_tokens == 0) return "";
  return fmt::format(", shorten the context ({} tokens would fit{}{})", num_tokens,
                     flag.empty() ? "" : ", ", flag);
}

}  // namespace stoker::tools
