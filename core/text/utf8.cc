#include "core/text/utf8.h"

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "core/base/check.h"

namespace stoker {
namespace {

// What may follow a lead byte: how many bytes, and the range of the first of them. The narrow
// ranges are where overlong forms, surrogates and values above U+10FFFF are refused.
struct Lead {
  std::size_t num_following;  // 0: begins nothing
  std::uint8_t low, high;
};

Lead lead_of(std::uint8_t byte) {
  if (byte >= 0xC2 && byte <= 0xDF) return {1, 0x80, 0xBF};
  if (byte == 0xE0) return {2, 0xA0, 0xBF};
  if (byte == 0xED) return {2, 0x80, 0x9F};
  if (byte >= 0xE1 && byte <= 0xEF) return {2, 0x80, 0xBF};
  if (byte == 0xF0) return {3, 0x90, 0xBF};
  if (byte >= 0xF1 && byte <= 0xF3) return {3, 0x80, 0xBF};
  if (byte == 0xF4) return {3, 0x80, 0x8F};
  return {0, 0, 0};
}

// Leading ASCII bytes, eight at a time.
std::size_t ascii_prefix(std::string_view text) {
  std::size_t n = 0;
  while (n + 8 <= text.size()) {
    std::uint64_t word;
    std::memcpy(&word, text.data() + n, 8);
    if (word & 0x8080808080808080u) break;
    n += 8;
  }
  while (n < text.size() && static_cast<std::uint8_t>(text[n]) < 0x80) ++n;
  return n;
}

}  // namespace

Utf8Step utf8_step(std::string_view text) {
  CHECK(!text.empty());
  const auto byte = [&](std::size_t i) { return static_cast<std::uint8_t>(text[i]); };
  if (byte(0) < 0x80) return {1, Utf8State::kValid};
  const Lead lead = lead_of(byte(0));
  if (lead.num_following == 0) return {1, Utf8State::kInvalid};
  for (std::size_t i = 1; i <= lead.num_following; ++i) {
    if (i == text.size()) return {i, Utf8State::kTruncated};
    const std::uint8_t low = i == 1 ? lead.low : 0x80;
    const std::uint8_t high = i == 1 ? lead.high : 0xBF;
    if (byte(i) < low || byte(i) > high) return {i, Utf8State::kInvalid};
  }
  return {lead.num_following + 1, Utf8State::kValid};
}

std::size_t valid_utf8_prefix(std::string_view text) {
  std::size_t n = 0;
  while (true) {
    n += ascii_prefix(text.substr(n));
    if (n == text.size()) return n;
    const Utf8Step step = utf8_step(text.substr(n));
    if (step.state != Utf8State::kValid) return n;
    n += step.num_bytes;
  }
}

void append_valid_utf8(std::string_view text, std::string* out) {
  while (true) {
    const std::size_t valid = valid_utf8_prefix(text);
    out->append(text.substr(0, valid));
    text.remove_prefix(valid);
    if (text.empty()) return;
    out->append(kReplacementCharacter);
    text.remove_prefix(utf8_step(text).num_bytes);
  }
}

std::string to_valid_utf8(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  append_valid_utf8(text, &out);
  return out;
}

std::size_t incomplete_utf8_suffix(std::string_view text) {
  // A lead byte among the last three decides; what is before it cannot be continued.
  for (std::size_t n = 1; n <= std::min<std::size_t>(3, text.size()); ++n) {
    const std::string_view suffix = text.substr(text.size() - n);
    const Utf8Step step = utf8_step(suffix);
    if (step.state == Utf8State::kTruncated) return n;
    if (static_cast<std::uint8_t>(suffix[0]) >= 0xC0) return 0;
  }
  return 0;
}

}  // namespace stoker
