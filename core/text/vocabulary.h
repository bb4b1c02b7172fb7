// Every token a tokenizer knows: the model's vocabulary, spelled in the byte alphabet, and the
// added tokens, which are literal text.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "core/base/error.h"
#include "core/base/ids.h"
#include "core/text/string_list.h"
#include "core/text/tokenizer_json.h"

namespace stoker {

// Immutable.
class Vocabulary {
 public:
  // Refuses an id or a spelling that two tokens share, and an added token that would read back as
  // something else than its content. An added token may repeat a vocabulary entry of the same id.
  static Result<Vocabulary> create(StringList spellings, std::vector<TokenId> ids,
                                   const std::vector<AddedToken>& added_tokens);

  // Highest id + 1. Ids below may be unused.
  int size() const { return static_cast<int>(flags_.size()); }
  bool contains(TokenId id) const { return flags(id) != 0; }
  bool is_special(TokenId id) const { return (flags(id) & kSpecial) != 0; }

  // What the token stands for; may be part of a UTF-8 sequence. Empty for an unused id.
  std::string_view bytes(TokenId id) const {
    return contains(id) ? bytes_[id] : std::string_view();
  }

  // An entry of the model's vocabulary by its spelling in the file, an added token by its content.
  std::optional<TokenId> find_spelling(std::string_view spelling) const;
  std::optional<TokenId> find_added(std::string_view content) const;

 private:
  static constexpr std::uint8_t kPresent = 1, kSpecial = 2;

  Status index_spellings();
  Status add_flags(const std::vector<AddedToken>& added_tokens);
  void fill_bytes(const std::vector<AddedToken>& added_tokens);

  std::uint8_t flags(TokenId id) const { return id >= 0 && id < size() ? flags_[id] : 0; }
  std::size_t slot_of(std::string_view spelling) const;

  StringList spellings_;
  std::vector<TokenId> ids_;          // beside spellings_
  std::vector<std::uint32_t> slots_;  // open addressing: index into spellings_, or kEmptySlot
  std::unordered_map<std::string, TokenId> added_;
  std::vector<std::uint8_t> flags_;  // per id; 0: unused
  StringList bytes_;                 // per id
};

}  // namespace stoker
