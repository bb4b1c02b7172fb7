// A hostile tokenizer.json: it is refused, or it encodes and decodes without loss.
#include <algorithm>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "core/base/check.h"
#include "core/text/stream_decoder.h"
#include "core/text/tokenizer.h"
#include "core/text/utf8.h"

namespace stoker {
namespace {

void check_round_trip(const Tokenizer& tokenizer, std::string_view text) {
  const std::vector<TokenId> ids = tokenizer.encode(text);
  const std::string expected = to_valid_utf8(text);
  CHECK(tokenizer.decode(ids) == expected);

  StreamDecoder decoder(tokenizer);
  std::string streamed;
  for (const TokenId id : ids) {
    CHECK(tokenizer.contains(id), "id {}", id);
    streamed += decoder.push(id);
  }
  CHECK(streamed + decoder.flush() == expected);
}

void check_any_ids(const Tokenizer& tokenizer, std::string_view bytes) {
  std::vector<TokenId> ids;
  for (std::size_t i = 0; i + 1 < bytes.size(); i += 2) {
    ids.push_back(static_cast<std::uint8_t>(bytes[i]) << 8 |
                  static_cast<std::uint8_t>(bytes[i + 1]));
  }
  for (const SpecialTokens special : {SpecialTokens::kKeep, SpecialTokens::kSkip}) {
    const std::string text = tokenizer.decode(ids, special);
    CHECK(valid_utf8_prefix(text) == text.size());
  }
}

}  // namespace
}  // namespace stoker

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace stoker;
  const std::string_view bytes(reinterpret_cast<const char*>(data), size);
  const auto tokenizer = Tokenizer::parse(bytes, "fuzz");
  if (!tokenizer.ok()) return 0;
  // The file is a text too, with every added token in it.
  const std::string_view text = bytes.substr(0, 2000);
  check_round_trip(*tokenizer, text);
  check_round_trip(*tokenizer,
                   bytes.substr(bytes.size() - std::min<std::size_t>(bytes.size(), 500)));
  check_round_trip(*tokenizer,
                   "  The experts\n\n wait: 12345 \xF0\x9F\x98\x80 \xE4\xB8\x93 \xFF\xE2\x82");
  check_any_ids(*tokenizer, text);
  return 0;
}
