// Finds added tokens in text: leftmost first, the longest of those that begin at the same place.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "core/base/ids.h"

namespace stoker {

// Const and shared between threads once filled.
class AddedTokens {
 public:
  struct Match {
    std::size_t begin, end;  // bytes of the text
    TokenId id;
  };

  // Requires: `content` is not empty and was not added before.
  void add(std::string_view content, TokenId id);

  // The first match that begins at or after `from`.
  std::optional<Match> find(std::string_view text, std::size_t from) const;

 private:
  static constexpr TokenId kNoToken = -1;

  // A node of the trie of contents is a row number; its edges are in one map for all nodes.
  static std::uint64_t edge(std::uint32_t node, char byte) {
    return std::uint64_t{node} << 8 | static_cast<std::uint8_t>(byte);
  }

  std::array<bool, 256> begins_{};
  std::unordered_map<std::uint64_t, std::uint32_t> edges_;
  std::vector<TokenId> token_at_ = {kNoToken};  // per node; node 0 is the root
};

}  // namespace stoker
