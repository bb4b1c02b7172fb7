#include "core/text/added_tokens.h"

#include "core/base/check.h"

namespace stoker {

void AddedTokens::add(std::string_view content, TokenId id) {
  CHECK(!content.empty());
  begins_[static_cast<std::uint8_t>(content[0])] = true;
  std::uint32_t node = 0;
  for (const char byte : content) {
    const auto next = static_cast<std::uint32_t>(token_at_.size());
    const auto [it, inserted] = edges_.try_emplace(edge(node, byte), next);
    if (inserted) token_at_.push_back(kNoToken);
    node = it->second;
  }
  CHECK(token_at_[node] == kNoToken, "{} was added before", content);
  token_at_[node] = id;
}

std::optional<AddedTokens::Match> AddedTokens::find(std::string_view text, std::size_t from) const {
  for (std::size_t begin = from; begin < text.size(); ++begin) {
    if (!begins_[static_cast<std::uint8_t>(text[begin])]) continue;
    std::optional<Match> longest;
    std::uint32_t node = 0;
    for (std::size_t i = begin; i < text.size(); ++i) {
      const auto it = edges_.find(edge(node, text[i]));
      if (it == edges_.end()) break;
      node = it->second;
      if (token_at_[node] != kNoToken) longest = Match{begin, i + 1, token_at_[node]};
    }
    if (longest) return longest;
  }
  return std::nullopt;
}

}  // namespace stoker
