// TokenTable: what each token chose when it came by last, in the first layers with experts. There
// the token itself says most about the choice, and it is known before any layer has run.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "core/base/ids.h"

namespace stoker {

// Driver thread; allocates nothing after construction. Takes kTokens * kLayers * top_k * 2 bytes.
class TokenTable {
 public:
  static constexpr int kLayers = 2;  // that are remembered
  // A larger vocabulary shares entries: a table of guesses may forget.
  static constexpr int kTokens = 1 << 17;

  explicit TokenTable(int top_k)
      : top_k_(static_cast<std::size_t>(top_k)),
        experts_(std::size_t{kTokens} * kLayers * top_k_, kNone) {}

  // `place`: of the layer, in [0, kLayers). At most top_k experts, best first.
  void store(TokenId token, int place, std::span<const std::int32_t> experts);
  // Best first; empty if nothing is known.
  std::span<const std::uint16_t> find(TokenId token, int place) const;

 private:
  static constexpr std::uint16_t kNone = 0xFFFF;

  std::size_t begin(TokenId token, int place) const {
    return (static_cast<std::size_t>(token % kTokens) * kLayers + static_cast<std::size_t>(place)) *
           top_k_;
  }

  std::size_t top_k_;
  std::vector<std::uint16_t> experts_;  // [token, layer, rank], kNone behind the end
};

}  // namespace stoker
