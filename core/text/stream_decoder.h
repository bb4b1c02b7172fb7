// Text while tokens arrive. A token may end inside a UTF-8 sequence: such bytes are held back until
// they are completed, or until it is clear that they never will be.
#pragma once

#include <string>

#include "core/text/tokenizer.h"

namespace stoker {

// Everything returned up to and with flush(), put together, equals Tokenizer::decode of the tokens.
class StreamDecoder {
 public:
  // `tokenizer` must outlive this.
  explicit StreamDecoder(const Tokenizer& tokenizer, SpecialTokens special = SpecialTokens::kKeep)
      : tokenizer_(&tokenizer), special_(special) {}

  // The text that `id` completes: valid UTF-8, may be empty.
  std::string push(TokenId id);

  // What is still held back, as U+FFFD. Begins anew.
  std::string flush();

 private:
  const Tokenizer* tokenizer_;
  SpecialTokens special_;
  std::string held_;  // at most 3 bytes between calls
};

}  // namespace stoker
