// Text to tokens and back, as the model's tokenizer.json says (Hugging Face format, byte-level
// BPE).
#pragma once

#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/base/error.h"
#include "core/base/ids.h"
#include "core/text/added_tokens.h"
#include "core/text/bpe.h"
#include "core/text/pre_tokenizer.h"
#include "core/text/vocabulary.h"

namespace stoker {

enum class SpecialTokens { kKeep, kSkip };

// Const after loading and shared between threads.
class Tokenizer {
 public:
  // Reads tokenizer.json, or the file of that name in a directory.
  static Result<Tokenizer> load(const std::string& path);

  // The same from memory; `name` stands in front of errors.
  static Result<Tokenizer> parse(std::string_view json, std::string_view name);

  // Added tokens are found first, wherever they come from: the format has no escaping. Bytes that
  // are not UTF-8 are encoded as U+FFFD, one for each maximal invalid subsequence (utf8.h). Adds
  // neither BOS nor EOS. Requires: less than 4 GiB.
  std::vector<TokenId> encode(std::string_view text) const;

  // Valid UTF-8, whatever the tokens: what they leave incomplete or invalid becomes U+FFFD by the
  // same rule, and ids outside the vocabulary (the model's is padded) add nothing. kSkip leaves out
  // the tokens that the file calls special. For valid UTF-8, decode(encode(text)) == text.
  std::string decode(std::span<const TokenId> tokens,
                     SpecialTokens special = SpecialTokens::kKeep) const;

  // What one token stands for; may be part of a UTF-8 sequence, or nothing for an unused id.
  std::string_view token_bytes(TokenId id) const { return vocabulary_.bytes(id); }

  // The token that stands for exactly these bytes; an added token goes before an ordinary one.
  std::optional<TokenId> find(std::string_view bytes) const;

  // Markers of begin and end of sequence, by DeepSeek's names for them. Empty if the file has none.
  std::optional<TokenId> bos_id() const { return bos_id_; }
  std::optional<TokenId> eos_id() const { return eos_id_; }

  // Highest id + 1. The model's vocabulary may be larger: it is padded.
  int vocab_size() const { return vocabulary_.size(); }
  bool contains(TokenId id) const { return vocabulary_.contains(id); }
  bool is_special(TokenId id) const { return vocabulary_.is_special(id); }

  // How the split patterns are matched on this machine.
  PreTokenizer::Engine engine() const { return pre_tokenizer_.engine(); }

 private:
  Tokenizer(Vocabulary vocabulary, Bpe bpe, PreTokenizer pre_tokenizer);

  Vocabulary vocabulary_;
  Bpe bpe_;
  PreTokenizer pre_tokenizer_;
  AddedTokens first_added_, second_added_;  // normalized: false, then true
  std::optional<TokenId> bos_id_, eos_id_;
};

}  // namespace stoker
