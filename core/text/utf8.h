// UTF-8 as bytes: what is valid, and what stands in for the rest. One rule everywhere: each maximal
// invalid subsequence becomes one U+FFFD (Unicode's "substitution of maximal subparts", what
// Python's errors="replace" does too). A maximal subsequence is the longest run of bytes that
// begins some valid sequence but does not complete it, or one byte that begins none.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace stoker {

inline constexpr std::string_view kReplacementCharacter = "\xEF\xBF\xBD";  // U+FFFD

enum class Utf8State {
  kValid,      // one code point
  kInvalid,    // a maximal invalid subsequence
  kTruncated,  // the text ends inside a sequence that was valid so far
};

struct Utf8Step {
  std::size_t num_bytes;  // at least 1
  Utf8State state;
};

// What stands at the front of `text`. Requires: `text` is not empty.
Utf8Step utf8_step(std::string_view text);

// Bytes of the longest valid prefix of `text`.
std::size_t valid_utf8_prefix(std::string_view text);

// Appends `text` to `out`, with one U+FFFD for each maximal invalid subsequence.
void append_valid_utf8(std::string_view text, std::string* out);
std::string to_valid_utf8(std::string_view text);

// Bytes at the end of `text` (at most 3) that begin a sequence which further bytes may complete.
std::size_t incomplete_utf8_suffix(std::string_view text);

}  // namespace stoker
