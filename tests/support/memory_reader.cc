#include "tests/support/memory_reader.h"

#include <algorithm>
#include <cstring>
#include <new>

namespace stoker::test {
namespace {

constexpr std::align_val_t kAlign{4096};

}  // namespace

void MemoryArena::Free::operator()(std::byte* memory) const { ::operator delete(memory, kAlign); }

MemoryArena::MemoryArena(int num_slots, std::int64_t slot_bytes)
    : num_slots_(num_slots),
      num_usable_(num_slots),
      slot_bytes_(slot_bytes),
      memory_(static_cast<std::byte*>(
          ::operator new(static_cast<std::size_t>(std::max(num_slots, 1) * slot_bytes), kAlign))) {}

MemoryReader::MemoryReader(const ExpertSource& source, MemoryReaderOptions options)
    : source_(source), options_(std::move(options)), random_(options_.seed) {}

void MemoryReader::submit(std::span<const BlockRead> reads) {
  for (const BlockRead& read : reads) {
    const auto same = [&](const BlockRead& other) { return other.tag == read.tag; };
    CHECK(std::none_of(queued_.begin(), queued_.end(), same) &&
              std::none_of(reading_.begin(), reading_.end(), same) &&
              std::find(cancelled_.begin(), cancelled_.end(), read.tag) == cancelled_.end(),
          "tag {} is under way", read.tag);
    queued_.push_back(read);
  }
  issue();
}

void MemoryReader::promote(std::uint32_t tag, ReadClass read_class, float priority) {
  for (BlockRead& read : queued_) {
    if (read.tag != tag) continue;
    read.read_class = read_class;
    read.priority = priority;
  }
}

void MemoryReader::cancel(std::uint32_t tag) {
  const auto at = std::find_if(queued_.begin(), queued_.end(),
                               [&](const BlockRead& read) { return read.tag == tag; });
  if (at == queued_.end()) return;
  queued_.erase(at);
  cancelled_.push_back(tag);
}

void MemoryReader::issue() {
  while (!held_ && !queued_.empty() && static_cast<int>(reading_.size()) < options_.depth) {
    const auto next = std::min_element(
        queued_.begin(), queued_.end(), [](const BlockRead& a, const BlockRead& b) {
          return a.read_class != b.read_class ? a.read_class < b.read_class
                                              : a.priority > b.priority;
        });
    reading_.push_back(*next);
    if (options_.keeps_log) issued_.push_back(*next);
    queued_.erase(next);
  }
}

std::size_t MemoryReader::reap(std::span<BlockDone> out) {
  std::size_t count = 0;
  while (!cancelled_.empty() && count < out.size()) {
    BlockDone& done = out[count++];
    done = {};
    done.tag = cancelled_.back();
    done.outcome = ReadOutcome::kCancelled;
    cancelled_.pop_back();
  }
  issue();
  int left = static_cast<int>(random_() % static_cast<unsigned>(options_.max_per_reap + 1));
  for (; !held_ && left > 0 && !reading_.empty() && count < out.size(); --left) {
    const std::size_t chosen = options_.shuffled ? random_() % reading_.size() : 0;
    const BlockRead read = reading_[chosen];
    reading_.erase(reading_.begin() + static_cast<std::ptrdiff_t>(chosen));
    complete(read, out[count++]);
    issue();
  }
  return count;
}

void MemoryReader::complete(const BlockRead& read, BlockDone& done) {
  const int replica =
      read.replica != kAnyReplica
          ? read.replica
          : static_cast<int>(random_() % static_cast<unsigned>(source_.num_replicas(read.id)));
  done = {};
  done.tag = read.tag;
  done.replica = replica;
  const ReadFault fault = options_.fault ? options_.fault(read, replica) : ReadFault::kNone;
  if (fault == ReadFault::kFails) {
    done.outcome = ReadOutcome::kFailed;
    done.status = make_error(ErrorCode::kIo, "copy {} of expert {}.{}: Input/output error", replica,
                             read.id.layer, read.id.expert);
    return;
  }
  const std::int64_t offset = source_.block_offset(read.id.layer, read.block);
  const std::int64_t bytes = source_.block_bytes(read.id.layer, read.block);
  std::memcpy(read.dst, bytes_of(read.id).data() + offset, static_cast<std::size_t>(bytes));
  if (fault == ReadFault::kFlipsABit)
    read.dst[random_() % static_cast<unsigned>(bytes)] ^=
        static_cast<std::byte>(1u << random_() % 8);
  bytes_read_ += bytes;
}

const std::vector<std::byte>& MemoryReader::bytes_of(ExpertId id) {
  std::vector<std::byte>& bytes = experts_[id];
  if (bytes.empty()) {
    bytes.resize(static_cast<std::size_t>(source_.expert_bytes(id.layer)));
    const Status status = source_.read(id, bytes.data());
    CHECK(status.ok(), "{}", status.error().message());
  }
  return bytes;
}

ReaderLoad MemoryReader::load() const {
  ReaderLoad load;
  for (const BlockRead& read : queued_) {
    const std::int64_t bytes = source_.block_bytes(read.id.layer, read.block);
    (read.read_class == ReadClass::kDemand ? load.queued_demand_bytes
                                           : load.queued_speculative_bytes) += bytes;
  }
  for (const BlockRead& read : reading_)
    load.reading_bytes += source_.block_bytes(read.id.layer, read.block);
  load.bytes_read = bytes_read_;
  load.bytes_per_second = 1e9;
  return load;
}

}  // namespace stoker::test
