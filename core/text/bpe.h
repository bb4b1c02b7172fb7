// Byte-pair merging within one piece: always the pair of lowest rank, the leftmost of equals.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <string_view>
#include <vector>

#include "core/base/error.h"
#include "core/base/ids.h"

namespace stoker {

struct Merge {
  TokenId left, right, merged;
};

// Immutable.
class Bpe {
 public:
  static constexpr TokenId kNoToken = -1;

  // `byte_tokens`: the token of each single byte, kNoToken for bytes that pieces never contain. The
  // rank of a merge is its index. Refuses two merges of one pair.
  static Result<Bpe> create(const std::array<TokenId, 256>& byte_tokens, std::vector<Merge> merges);

  // Room for one thread's work, reused from piece to piece.
  class Scratch {
   public:
    Scratch();
    Scratch(Scratch&&) noexcept;
    ~Scratch();

   private:
    friend class Bpe;
    struct Symbol;
    class Queue;

    std::vector<TokenId> ids_;          // short pieces
    std::vector<std::uint32_t> ranks_;  // short pieces
    std::vector<Symbol> symbols_;       // long pieces
    std::unique_ptr<Queue> queue_;      // long pieces
  };

  // Appends the tokens of `piece`. O(n log n) whatever the piece and the merges.
  // Requires: every byte of `piece` has a token; fewer than 2^32-1 bytes.
  void encode(std::string_view piece, Scratch& scratch, std::vector<TokenId>* out) const;

 private:
  static constexpr std::uint32_t kNoRank = 0xFFFFFFFF;

  struct Slot {
    std::uint64_t pair = 0;
    std::uint32_t rank = kNoRank;  // kNoRank: empty slot
  };

  Bpe() = default;
  std::size_t slot_of(std::uint64_t pair) const;
  std::uint32_t rank_of(TokenId left, TokenId right) const;
  void encode_short(std::string_view piece, Scratch& scratch, std::vector<TokenId>* out) const;
  void encode_long(std::string_view piece, Scratch& scratch, std::vector<TokenId>* out) const;

  std::array<TokenId, 256> byte_tokens_{};
  std::vector<Merge> merges_;
  std::vector<Slot> slots_;  // open addressing, at most half full
  int shift_ = 0;            // 64 - log2(slots)
};

}  // namespace stoker
