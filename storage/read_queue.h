// ReadQueue: the reads a drive has yet to issue. By class, then priority (higher first), then first
// come. Not thread-safe. Allocates only to grow past the most it ever held.
#pragma once

#include <cstdint>
#include <memory_resource>
#include <optional>
#include <unordered_map>
#include <vector>

#include "core/interface/expert_source.h"

namespace stoker::storage {

struct QueuedRead {
  BlockRead read;
  std::int64_t bytes = 0;  // that it puts in flight
};

class ReadQueue {
 public:
  bool empty() const { return heap_.empty(); }
  std::size_t size() const { return heap_.size(); }

  // Requires: no read of this tag is queued.
  void push(const QueuedRead& read);
  // Requires: not empty.
  const QueuedRead& top() const { return heap_.front().read; }
  QueuedRead pop();

  // The queued read of this tag, or null. Valid until the queue changes.
  const QueuedRead* find(std::uint32_t tag) const;
  // Moves it; it keeps its turn among equals. Requires: it is queued.
  void promote(std::uint32_t tag, ReadClass read_class, float priority);
  // Takes it out. Requires: it is queued.
  QueuedRead remove(std::uint32_t tag);

 private:
  struct Node {
    QueuedRead read;
    std::uint64_t turn = 0;
  };

  static bool before(const Node& a, const Node& b);
  void place(std::size_t at, const Node& node);
  void sift_up(std::size_t at);
  void sift_down(std::size_t at);
  QueuedRead take(std::size_t at);

  std::vector<Node> heap_;  // binary, the next one in front
  std::pmr::unsynchronized_pool_resource memory_;
  std::pmr::unordered_map<std::uint32_t, std::size_t> places_{&memory_};  // tag -> index in heap_
  std::uint64_t next_turn_ = 0;
};

}  // namespace stoker::storage
