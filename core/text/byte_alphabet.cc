#include "core/text/byte_alphabet.h"

#include <array>

namespace stoker {
namespace {

constexpr int kNumCodePoints = 0x144;

constexpr bool stands_for_itself(int byte) {
  return (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) ||
         (byte >= 174 && byte <= 255);
}

struct Alphabet {
  std::array<std::int16_t, kNumCodePoints> byte_of{};  // -1: not of the alphabet
  std::array<std::int16_t, 256> code_point_of{};
};

constexpr Alphabet make_alphabet() {
  Alphabet alphabet;
  for (std::int16_t& byte : alphabet.byte_of) byte = -1;
  int next = 0x100;
  for (int byte = 0; byte < 256; ++byte) {
    const int code_point = stands_for_itself(byte) ? byte : next++;
    alphabet.code_point_of[byte] = static_cast<std::int16_t>(code_point);
    alphabet.byte_of[code_point] = static_cast<std::int16_t>(byte);
  }
  return alphabet;
}

constexpr Alphabet kAlphabet = make_alphabet();

}  // namespace

std::optional<std::string> spelling_to_bytes(std::string_view spelling) {
  std::string bytes;
  for (std::size_t i = 0; i < spelling.size(); ++i) {
    int code_point = static_cast<std::uint8_t>(spelling[i]);
    if (code_point >= 0x80) {
      // Two bytes reach U+07FF, more than the alphabet needs.
      if (code_point >= 0xE0 || i + 1 == spelling.size()) return std::nullopt;
      code_point = (code_point & 0x1F) << 6 | (static_cast<std::uint8_t>(spelling[++i]) & 0x3F);
    }
    if (code_point >= kNumCodePoints || kAlphabet.byte_of[code_point] < 0) return std::nullopt;
    bytes.push_back(static_cast<char>(kAlphabet.byte_of[code_point]));
  }
  return bytes;
}

std::string bytes_to_spelling(std::string_view bytes) {
  std::string spelling;
  for (const char c : bytes) {
    const int code_point = kAlphabet.code_point_of[static_cast<std::uint8_t>(c)];
    if (code_point < 0x80) {
      spelling.push_back(static_cast<char>(code_point));
    } else {
      spelling.push_back(static_cast<char>(0xC0 | code_point >> 6));
      spelling.push_back(static_cast<char>(0x80 | (code_point & 0x3F)));
    }
  }
  return spelling;
}

}  // namespace stoker
