// Reads a Hugging Face tokenizer.json into plain data. What is in the file but not in TokenizerJson
// has been checked to change nothing, or was refused: a byte-level BPE without normaliser, whose
// pre-tokenizer is any number of isolating regex Splits and then ByteLevel.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "core/base/error.h"
#include "core/base/ids.h"
#include "core/text/string_list.h"

namespace stoker {

// Ids at or above this are refused: a hostile file must not make us allocate by its largest number.
inline constexpr TokenId kMaxTokenId = 1 << 20;

struct AddedToken {
  TokenId id = 0;
  std::string content;      // literal text, not empty
  bool special = false;     // left out when special tokens are skipped
  bool normalized = false;  // matched in the second pass
};

struct TokenizerJson {
  StringList vocabulary;                // spelled in the byte alphabet, not yet checked for repeats
  std::vector<TokenId> vocabulary_ids;  // beside `vocabulary`, each in 0 .. kMaxTokenId-1
  StringList merges_left, merges_right;  // same length; the index is the rank
  std::vector<AddedToken> added_tokens;
  std::vector<std::string> split_patterns;  // as in the file, in order
};

// `text` is the whole file. Errors name the field; the caller adds the name of the file.
Result<TokenizerJson> parse_tokenizer_json(std::string_view text);

}  // namespace stoker
