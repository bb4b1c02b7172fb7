// The alphabet in which byte-level BPE files spell bytes: 33-126, 161-172 and 174-255 stand for
// themselves as code points, the 68 others are U+0100 to U+0143 in order.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace stoker {

// The bytes that `spelling` (valid UTF-8) stands for. Empty if a character is not of the alphabet.
std::optional<std::string> spelling_to_bytes(std::string_view spelling);

// The other way. Any bytes, valid UTF-8 or not.
std::string bytes_to_spelling(std::string_view bytes);

}  // namespace stoker
