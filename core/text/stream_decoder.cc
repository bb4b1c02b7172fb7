#include "core/text/stream_decoder.h"

#include <utility>

#include "core/text/utf8.h"

namespace stoker {

std::string StreamDecoder::push(TokenId id) {
  if (special_ == SpecialTokens::kSkip && tokenizer_->is_special(id)) return {};
  held_.append(tokenizer_->token_bytes(id));
  const std::size_t num_complete = held_.size() - incomplete_utf8_suffix(held_);
  std::string text;
  append_valid_utf8(std::string_view(held_).substr(0, num_complete), &text);
  held_.erase(0, num_complete);
  return text;
}

std::string StreamDecoder::flush() { return to_valid_utf8(std::exchange(held_, {})); }

}  // namespace stoker
