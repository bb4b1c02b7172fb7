// Sentences for the person who watches.
#pragma once

#include <fmt/format.h>

#include <cstdio>
#include <string_view>

namespace stoker::tools {

// On standard error: standard output carries results only. Thread-safe.
inline void say_notice(std::string_view text) { fmt::print(stderr, "stoker: {}\n", text); }

}  // namespace stoker::tools
