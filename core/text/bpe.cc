#include "core/text/bpe.h"

#include <algorithm>
#include <bit>
#include <functional>
#include <queue>
#include <utility>

namespace stoker {
namespace {

// Below this a scan for the lowest rank beats keeping a queue.
constexpr std::size_t kShortPieceBytes = 96;
constexpr std::size_t kPrefetchDistance = 12;
constexpr std::uint32_t kNone = 0xFFFFFFFF;

std::uint64_t pair_of(TokenId left, TokenId right) {
  return std::uint64_t{static_cast<std::uint32_t>(left)} << 32 | static_cast<std::uint32_t>(right);
}

}  // namespace

// A doubly linked list of tokens in one array; a symbol keeps the place of its first byte.
struct Bpe::Scratch::Symbol {
  TokenId id;
  std::uint32_t prev, next;  // kNone at the ends
  std::uint32_t rank;        // of the pair with the next symbol; kNoRank: none, or merged away
};

// Places to merge, by rank and then from left to right. A binary heap of all places would miss the
// cache at every level once a piece has millions of bytes. Here places are kept in one bucket per
// rank, and arrive in order but for short disorders: a bucket is sorted once, when its turn comes,
// and then read through. What comes to a bucket after that (only from merges listed before their
// own parts) waits in a small heap beside it, so that no file can make this slow.
class Bpe::Scratch::Queue {
 public:
  struct Entry {
    std::uint32_t rank, place;
  };

  explicit Queue(std::size_t num_ranks) : bucket_of_(num_ranks, kNone) {}

  void push(std::uint32_t rank, std::uint32_t place) {
    if (bucket_of_[rank] == kNone) {
      bucket_of_[rank] = static_cast<std::uint32_t>(buckets_.size());
      buckets_.emplace_back();
      ranks_.push_back(rank);
    }
    Bucket& bucket = buckets_[bucket_of_[rank]];
    if (!std::exchange(bucket.is_active, true)) active_.push(rank);
    if (bucket.is_open) {
      bucket.late.push(place);
    } else {
      bucket.is_sorted =
          bucket.is_sorted && (bucket.places.empty() || bucket.places.back() <= place);
      bucket.places.push_back(place);
    }
  }

  // Takes the next place; false when there is none. `peek(place)` hears of one that is soon to
  // come.
  template <typename Peek>
  bool pop(Entry* entry, const Peek& peek) {
    while (!active_.empty()) {
      const std::uint32_t rank = active_.top();
      Bucket& bucket = buckets_[bucket_of_[rank]];
      if (!bucket.is_open) open(&bucket);
      const bool has_place = bucket.cursor < bucket.places.size();
      if (!bucket.late.empty() &&
          (!has_place || bucket.late.top() < bucket.places[bucket.cursor])) {
        *entry = {rank, bucket.late.top()};
        bucket.late.pop();
        return true;
      }
      if (has_place) {
        *entry = {rank, bucket.places[bucket.cursor++]};
        const std::size_t soon = bucket.cursor + kPrefetchDistance;
        if (soon < bucket.places.size()) peek(bucket.places[soon]);
        return true;
      }
      bucket = Bucket();
      active_.pop();
    }
    return false;
  }

  // Forgets the buckets of an emptied queue.
  void clear() {
    for (const std::uint32_t rank : ranks_) bucket_of_[rank] = kNone;
    ranks_.clear();
    buckets_.clear();
  }

 private:
  template <typename T>
  using MinHeap = std::priority_queue<T, std::vector<T>, std::greater<T>>;

  struct Bucket {
    std::vector<std::uint32_t> places;
    std::size_t cursor = 0;  // places before it are taken
    bool is_active = false;  // its rank is in active_
    bool is_open = false;
    bool is_sorted = true;
    MinHeap<std::uint32_t> late;
  };

  static void open(Bucket* bucket) {
    bucket->is_open = true;
    if (!bucket->is_sorted) std::sort(bucket->places.begin(), bucket->places.end());
  }

  std::vector<std::uint32_t> bucket_of_;  // per rank, kNone: no bucket yet
  std::vector<Bucket> buckets_;
  std::vector<std::uint32_t> ranks_;  // beside buckets_
  MinHeap<std::uint32_t> active_;
};

Bpe::Scratch::Scratch() = default;
Bpe::Scratch::Scratch(Scratch&&) noexcept = default;
Bpe::Scratch::~Scratch() = default;

Result<Bpe> Bpe::create(const std::array<TokenId, 256>& byte_tokens, std::vector<Merge> merges) {
  Bpe bpe;
  bpe.byte_tokens_ = byte_tokens;
  bpe.merges_ = std::move(merges);
  const std::size_t num_slots = std::bit_ceil(2 * bpe.merges_.size() + 2);
  bpe.slots_.resize(num_slots);
  bpe.shift_ = 64 - std::countr_zero(num_slots);
  for (std::size_t rank = 0; rank < bpe.merges_.size(); ++rank) {
    const std::uint64_t pair = pair_of(bpe.merges_[rank].left, bpe.merges_[rank].right);
    Slot& slot = bpe.slots_[bpe.slot_of(pair)];
    if (slot.rank != kNoRank) {
      return make_error(ErrorCode::kCorrupt, "model.merges[{}] repeats model.merges[{}]", rank,
                        slot.rank);
    }
    slot = {pair, static_cast<std::uint32_t>(rank)};
  }
  return bpe;
}

std::size_t Bpe::slot_of(std::uint64_t pair) const {
  std::size_t slot = (pair ^ pair >> 29) * 0x9E3779B97F4A7C15u >> shift_;
  while (slots_[slot].rank != kNoRank && slots_[slot].pair != pair)
    slot = (slot + 1) & (slots_.size() - 1);
  return slot;
}

std::uint32_t Bpe::rank_of(TokenId left, TokenId right) const {
  return slots_[slot_of(pair_of(left, right))].rank;
}

void Bpe::encode(std::string_view piece, Scratch& scratch, std::vector<TokenId>* out) const {
  if (piece.size() <= kShortPieceBytes) {
    encode_short(piece, scratch, out);
  } else {
    encode_long(piece, scratch, out);
  }
}

void Bpe::encode_short(std::string_view piece, Scratch& scratch, std::vector<TokenId>* out) const {
  if (piece.empty()) return;
  std::vector<TokenId>& ids = scratch.ids_;
  std::vector<std::uint32_t>& ranks = scratch.ranks_;  // ranks[i]: of the pair (ids[i], ids[i + 1])
  ids.clear();
  ranks.clear();
  for (const char c : piece) ids.push_back(byte_tokens_[static_cast<std::uint8_t>(c)]);
  for (std::size_t i = 0; i + 1 < ids.size(); ++i) ranks.push_back(rank_of(ids[i], ids[i + 1]));

  while (!ranks.empty()) {
    const std::size_t i = std::min_element(ranks.begin(), ranks.end()) - ranks.begin();
    if (ranks[i] == kNoRank) break;
    ids[i] = merges_[ranks[i]].merged;
    ids.erase(ids.begin() + i + 1);
    ranks.erase(ranks.begin() + i);
    if (i < ranks.size()) ranks[i] = rank_of(ids[i], ids[i + 1]);
    if (i > 0) ranks[i - 1] = rank_of(ids[i - 1], ids[i]);
  }
  out->insert(out->end(), ids.begin(), ids.end());
}

void Bpe::encode_long(std::string_view piece, Scratch& scratch, std::vector<TokenId>* out) const {
  using Symbol = Scratch::Symbol;
  using Queue = Scratch::Queue;
  CHECK(piece.size() < kNone, "a piece of {} bytes", piece.size());
  if (scratch.queue_ == nullptr) scratch.queue_ = std::make_unique<Queue>(merges_.size());
  Queue& queue = *scratch.queue_;
  std::vector<Symbol>& symbols = scratch.symbols_;
  symbols.clear();
  symbols.reserve(piece.size());

  const auto rank_pair = [&](std::uint32_t place) {
    Symbol& symbol = symbols[place];
    symbol.rank = symbol.next == kNone ? kNoRank : rank_of(symbol.id, symbols[symbol.next].id);
    if (symbol.rank != kNoRank) queue.push(symbol.rank, place);
  };

  // 1. One symbol per byte.
  const auto num_symbols = static_cast<std::uint32_t>(piece.size());
  for (std::uint32_t i = 0; i < num_symbols; ++i) {
    const TokenId id = byte_tokens_[static_cast<std::uint8_t>(piece[i])];
    const std::uint32_t next = i + 1 == num_symbols ? kNone : i + 1;
    symbols.push_back({id, i - 1, next, kNoRank});  // 0 - 1 is kNone
  }
  for (std::uint32_t i = 0; i < num_symbols; ++i) rank_pair(i);

  // 2. Merge. A place whose pair has changed since it was queued has another rank by now.
  const auto prefetch = [&](std::uint32_t place) { __builtin_prefetch(&symbols[place], 1); };
  Queue::Entry entry;
  while (queue.pop(&entry, prefetch)) {
    Symbol& left = symbols[entry.place];
    if (left.rank != entry.rank) continue;
    Symbol& right = symbols[left.next];
    left.id = merges_[entry.rank].merged;
    left.next = right.next;
    right.rank = kNoRank;
    if (left.next != kNone) symbols[left.next].prev = entry.place;
    if (left.prev != kNone) rank_pair(left.prev);
    rank_pair(entry.place);
  }
  queue.clear();

  // 3. What is left.
  for (std::uint32_t i = 0; i != kNone; i = symbols[i].next) out->push_back(symbols[i].id);
  constexpr std::size_t kMaxKeptSymbols = 1 << 16;
  if (symbols.capacity() > kMaxKeptSymbols) std::vector<Symbol>().swap(symbols);
}

}  // namespace stoker
