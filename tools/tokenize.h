// `stoker tokenize` without its terminal.
#pragma once

#include <string>
#include <string_view>

#include "core/text/tokenizer.h"

namespace stoker::tools {

// One line of `stoker tokenize`: a JSON string becomes a JSON array of ids; with `decode` an array
// of ids becomes a JSON string, special tokens kept. What is refused becomes {"error": "..."}.
std::string tokenize_line(const Tokenizer& tokenizer, std::string_view line, bool decode);

}  // namespace stoker::tools
