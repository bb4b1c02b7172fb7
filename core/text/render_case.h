// The `render` command without its terminal: one JSON case in, one JSON result out.
#pragma once

#include <string>
#include <string_view>

#include "core/text/chat_format.h"

namespace stoker {

// `line`: {"thinking_mode", "messages", "context", "drop_thinking", "add_default_bos_token"}, or
// with `parse` {"thinking_mode", "completion"}. The result is one line without its line break:
// {"prompt": ...}, with `parse` {"message": ...}, for a refused case {"error": ...}.
std::string render_case_line(const ChatFormat& format, std::string_view line, bool parse);

}  // namespace stoker
