#include "core/text/vocabulary.h"

#include <algorithm>
#include <bit>
#include <functional>
#include <utility>

#include "core/text/byte_alphabet.h"

namespace stoker {
namespace {

constexpr std::uint32_t kEmptySlot = 0xFFFFFFFF;

}  // namespace

Result<Vocabulary> Vocabulary::create(StringList spellings, std::vector<TokenId> ids,
                                      const std::vector<AddedToken>& added_tokens) {
  CHECK(spellings.size() == ids.size(), "{} spellings, {} ids", spellings.size(), ids.size());
  Vocabulary vocabulary;
  vocabulary.spellings_ = std::move(spellings);
  vocabulary.ids_ = std::move(ids);
  RETURN_IF_ERROR(vocabulary.index_spellings());
  RETURN_IF_ERROR(vocabulary.add_flags(added_tokens));
  vocabulary.fill_bytes(added_tokens);
  return vocabulary;
}

Status Vocabulary::index_spellings() {
  slots_.assign(std::bit_ceil(2 * spellings_.size() + 1), kEmptySlot);
  for (std::size_t i = 0; i < spellings_.size(); ++i) {
    std::uint32_t& slot = slots_[slot_of(spellings_[i])];
    if (slot != kEmptySlot) {
      return make_error(ErrorCode::kCorrupt, "model.vocab: id {} is spelled like id {}", ids_[i],
                        ids_[slot]);
    }
    slot = static_cast<std::uint32_t>(i);
  }
  return {};
}

Status Vocabulary::add_flags(const std::vector<AddedToken>& added_tokens) {
  TokenId highest = -1;
  for (const TokenId id : ids_) highest = std::max(highest, id);
  for (const AddedToken& token : added_tokens) highest = std::max(highest, token.id);
  flags_.assign(highest + 1, 0);

  for (const TokenId id : ids_) {
    if (std::exchange(flags_[id], kPresent) != 0) {
      return make_error(ErrorCode::kCorrupt, "model.vocab: id {} stands twice", id);
    }
  }
  for (std::size_t i = 0; i < added_tokens.size(); ++i) {
    const AddedToken& token = added_tokens[i];
    const bool is_new = added_.emplace(token.content, token.id).second;
    if (!is_new) {
      return make_error(ErrorCode::kCorrupt, "added_tokens[{}].content stands twice", i);
    }
    if (const std::optional<TokenId> id = find_spelling(token.content)) {
      if (*id != token.id) {
        return make_error(ErrorCode::kCorrupt, "added_tokens[{}].id is {}, in model.vocab it is {}",
                          i, token.id, *id);
      }
      // As a vocabulary entry it reads as bytes, as an added token as itself.
      if (spelling_to_bytes(token.content).value_or(token.content) != token.content) {
        return make_error(ErrorCode::kUnsupported,
                          "added_tokens[{}].content also spells other bytes in model.vocab", i);
      }
    } else if (flags_[token.id] != 0) {
      return make_error(ErrorCode::kCorrupt, "added_tokens[{}].id {} is taken", i, token.id);
    }
    flags_[token.id] = kPresent | (token.special ? kSpecial : 0);
  }
  return {};
}

void Vocabulary::fill_bytes(const std::vector<AddedToken>& added_tokens) {
  std::vector<std::string_view> content_of(flags_.size());
  std::vector<std::uint32_t> spelling_of(flags_.size(), kEmptySlot);
  for (const AddedToken& token : added_tokens) content_of[token.id] = token.content;
  for (std::size_t i = 0; i < ids_.size(); ++i)
    spelling_of[ids_[i]] = static_cast<std::uint32_t>(i);
  for (std::size_t id = 0; id < flags_.size(); ++id) {
    if (!content_of[id].empty() || spelling_of[id] == kEmptySlot) {
      bytes_.push_back(content_of[id]);
      continue;
    }
    // A spelling outside the alphabet stands for itself, as in the reference.
    const std::string_view spelling = spellings_[spelling_of[id]];
    const std::optional<std::string> bytes = spelling_to_bytes(spelling);
    bytes_.push_back(bytes ? std::string_view(*bytes) : spelling);
  }
}

std::size_t Vocabulary::slot_of(std::string_view spelling) const {
  const std::size_t mask = slots_.size() - 1;
  std::size_t slot = std::hash<std::string_view>()(spelling) & mask;
  while (slots_[slot] != kEmptySlot && spellings_[slots_[slot]] != spelling)
    slot = (slot + 1) & mask;
  return slot;
}

std::optional<TokenId> Vocabulary::find_spelling(std::string_view spelling) const {
  const std::uint32_t index = slots_[slot_of(spelling)];
  if (index == kEmptySlot) return std::nullopt;
  return ids_[index];
}

std::optional<TokenId> Vocabulary::find_added(std::string_view content) const {
  const auto it = added_.find(std::string(content));
  if (it == added_.end()) return std::nullopt;
  return it->second;
}

}  // namespace stoker
