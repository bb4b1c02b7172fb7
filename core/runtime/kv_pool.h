// Cached keys: pages of 64 tokens from a pool that is reserved at start, and the page tables of
// each sequence.
//
// Two streams, paged independently: latents (kv_lora_rank + rope) and indexer keys. One page id
// serves all layers: layer l keeps position p of a sequence in row page[p / 64] * 64 + p % 64 of
// its tensor. Full pages are shared between forks; a shared page is copied before it is written.
// Not thread-safe: the driver thread owns pool and sequences.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "core/base/error.h"
#include "core/interface/backend.h"
#include "core/model/model_config.h"
#include "core/runtime/placement.h"

namespace stoker {

enum class KvStream : std::uint8_t { kLatent, kIndex };
inline constexpr int kNumKvStreams = 2;

// Pages that hold so many tokens.
constexpr int pages_for(int tokens) { return (tokens + kPageTokens - 1) / kPageTokens; }

class KvPool {
 public:
  // Reserves `num_pages` pages per stream for every main layer, on the layer's dense backend and in
  // its kv_format(). Refused: a form that the model's rows do not fit.
  static Result<std::unique_ptr<KvPool>> create(const ModelConfig& config,
                                                const Placement& placement, int num_pages);

  // What a page of each stream takes of a layer; 0 of a stream that the layer does without.
  static std::array<std::int64_t, kNumKvStreams> page_bytes(const ModelConfig& config,
                                                            KvFormat format, const LayerSpec& spec);

  int num_pages() const { return num_pages_; }
  int num_free(KvStream stream) const { return static_cast<int>(state(stream).free.size()); }
  // The cached rows of a layer. The index stream is empty for layers without an indexer.
  KvLayer layer(KvStream stream, int layer) const {
    return {state(stream).layers[layer].view(), state(stream).row};
  }
  bool has_stream(KvStream stream) const { return state(stream).used; }
  std::int64_t bytes() const;

 private:
  friend class KvSequence;
  struct Stream {
    bool used = false;
    KvRow row;                              // what a cached row holds
    std::vector<Tensor> layers;             // one per main layer
    std::vector<std::int32_t> free;         // page ids, taken from the back
    std::vector<std::int32_t> num_holders;  // [num_pages]
  };

  KvPool(const Placement& placement, int num_pages)
      : placement_(placement), num_pages_(num_pages) {}
  Stream& state(KvStream stream) { return streams_[static_cast<int>(stream)]; }
  const Stream& state(KvStream stream) const { return streams_[static_cast<int>(stream)]; }
  std::int32_t take(Stream& stream);
  void drop(Stream& stream, std::int32_t page);
  // Enqueues the copy of one page in every layer.
  void copy_page(Stream& stream, std::int32_t dst, std::int32_t src);

  const Placement& placement_;
  int num_pages_;
  std::array<Stream, kNumKvStreams> streams_;
};

// The cached positions [0, length) of one timeline. Moves only; gives its pages back when
// destroyed, so it must not outlive its pool.
class KvSequence {
 public:
  explicit KvSequence(KvPool& pool);
  KvSequence(KvSequence&& other) noexcept;
  KvSequence& operator=(KvSequence&& other) noexcept;
  KvSequence(const KvSequence&) = delete;
  KvSequence& operator=(const KvSequence&) = delete;
  ~KvSequence();

  int length() const { return length_; }

  // Holds pages for `count` positions after length(), none of them shared. On error (pool
  // exhausted) nothing changed.
  Status reserve(int count);
  // The next `count` reserved positions are now cached.
  void commit(int count);
  // Forgets positions from `length` on and gives whole pages back.
  void rewind(int length);
  // A second timeline with the same past. Shares all pages; whoever writes into a shared page first
  // copies it.
  KvSequence fork() const;

  SequencePages pages() const;

 private:
  using Table = std::vector<std::int32_t>;
  int pages_to_take(const KvPool::Stream& stream, const Table& table, int count) const;
  void release_from(int num_pages);

  KvPool* pool_;
  int length_ = 0;
  std::array<Table, kNumKvStreams> tables_;
};

}  // namespace stoker
