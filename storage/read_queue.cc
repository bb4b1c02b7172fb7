#include "storage/read_queue.h"

namespace stoker::storage {

bool ReadQueue::before(const Node& a, const Node& b) {
  const BlockRead& x = a.read.read;
  const BlockRead& y = b.read.read;
  if (x.read_class != y.read_class) return x.read_class < y.read_class;
  if (x.priority != y.priority) return x.priority > y.priority;
  return a.turn < b.turn;
}

void ReadQueue::place(std::size_t at, const Node& node) {
  places_[node.read.read.tag] = at;
  heap_[at] = node;
}

void ReadQueue::sift_up(std::size_t at) {
  const Node node = heap_[at];
  while (at > 0) {
    const std::size_t parent = (at - 1) / 2;
    if (!before(node, heap_[parent])) break;
    place(at, heap_[parent]);
    at = parent;
  }
  place(at, node);
}

void ReadQueue::sift_down(std::size_t at) {
  const Node node = heap_[at];
  while (true) {
    std::size_t child = 2 * at + 1;
    if (child >= heap_.size()) break;
    if (child + 1 < heap_.size() && before(heap_[child + 1], heap_[child])) ++child;
    if (!before(heap_[child], node)) break;
    place(at, heap_[child]);
    at = child;
  }
  place(at, node);
}

void ReadQueue::push(const QueuedRead& read) {
  CHECK(!places_.contains(read.read.tag), "tag {} is queued already", read.read.tag);
  heap_.push_back({read, next_turn_++});
  sift_up(heap_.size() - 1);
}

QueuedRead ReadQueue::take(std::size_t at) {
  const QueuedRead taken = heap_[at].read;
  places_.erase(taken.read.tag);
  const Node last = heap_.back();
  heap_.pop_back();
  if (at < heap_.size()) {
    place(at, last);
    sift_up(at);
    sift_down(at);
  }
  return taken;
}

QueuedRead ReadQueue::pop() {
  CHECK(!heap_.empty());
  return take(0);
}

const QueuedRead* ReadQueue::find(std::uint32_t tag) const {
  const auto it = places_.find(tag);
  return it == places_.end() ? nullptr : &heap_[it->second].read;
}

void ReadQueue::promote(std::uint32_t tag, ReadClass read_class, float priority) {
  const auto it = places_.find(tag);
  CHECK(it != places_.end(), "tag {} is not queued", tag);
  const std::size_t at = it->second;
  heap_[at].read.read.read_class = read_class;
  heap_[at].read.read.priority = priority;
  sift_up(at);
  sift_down(places_.at(tag));
}

QueuedRead ReadQueue::remove(std::uint32_t tag) {
  const auto it = places_.find(tag);
  CHECK(it != places_.end(), "tag {} is not queued", tag);
  return take(it->second);
}

}  // namespace stoker::storage
