#include "prefetch/modelled_reader.h"

#include <algorithm>
#include <cmath>
#include <utility>

namespace stoker {

ModelledReader::ModelledReader(const ExpertSource& source, const Clock& clock,
                               ModelledReaderOptions options)
    : source_(source), clock_(clock), options_(std::move(options)) {
  CHECK(!options_.drives.empty(), "a reader without drives");
  for (const ModelledDrive& spec : options_.drives) {
    CHECK(spec.bytes_per_second > 0.0 && spec.latency_us >= 0 && spec.depth > 0,
          "a drive of {} B/s, {} us, depth {}", spec.bytes_per_second, spec.latency_us, spec.depth);
    drives_.emplace_back().spec = spec;
  }
}

int ModelledReader::drive_of(ExpertId id) const {
  const int num_drives = static_cast<int>(drives_.size());
  const int drive = options_.drive_of ? options_.drive_of(id) : (id.layer + id.expert) % num_drives;
  CHECK(drive >= 0 && drive < num_drives, "expert {} of layer {} on drive {} of {}", id.expert,
        id.layer, drive, num_drives);
  return drive;
}

std::int64_t ModelledReader::bytes_of(const BlockRead& read) const {
  return source_.block_bytes(read.id.layer, read.block);
}

void ModelledReader::submit(std::span<const BlockRead> reads) {
  advance();
  for (const BlockRead& read : reads) {
    const int drive = drive_of(read.id);
    const Key key{read.read_class, -read.priority, num_arrivals_++};
    CHECK(queued_.emplace(read.tag, Queued{drive, key}).second, "tag {} is queued", read.tag);
    drives_[drive].queue.emplace(key, read);
    queued_bytes(read.read_class) += bytes_of(read);
  }
  const auto now_us = static_cast<double>(clock_.now_us());
  for (Drive& drive : drives_) issue(drive, now_us);
}

void ModelledReader::promote(std::uint32_t tag, ReadClass read_class, float priority) {
  advance();
  const auto at = queued_.find(tag);
  if (at == queued_.end()) return;
  Drive& drive = drives_[at->second.drive];
  auto entry = drive.queue.extract(at->second.key);
  const std::int64_t bytes = bytes_of(entry.mapped());
  queued_bytes(entry.key().read_class) -= bytes;
  queued_bytes(read_class) += bytes;
  entry.key().read_class = read_class;
  entry.key().minus_priority = -priority;
  entry.mapped().read_class = read_class;
  entry.mapped().priority = priority;
  at->second.key = entry.key();
  drive.queue.insert(std::move(entry));
  issue(drive, static_cast<double>(clock_.now_us()));
}

void ModelledReader::cancel(std::uint32_t tag) {
  advance();
  const auto at = queued_.find(tag);
  if (at == queued_.end()) return;
  const auto entry = drives_[at->second.drive].queue.extract(at->second.key);
  queued_bytes(entry.key().read_class) -= bytes_of(entry.mapped());
  queued_.erase(at);
  BlockDone& done = done_.emplace_back();
  done.tag = tag;
  done.outcome = ReadOutcome::kCancelled;
}

std::size_t ModelledReader::reap(std::span<BlockDone> out) {
  advance();
  const std::size_t count = std::min(out.size(), done_.size());
  std::move(done_.begin(), done_.begin() + static_cast<std::ptrdiff_t>(count), out.begin());
  done_.erase(done_.begin(), done_.begin() + static_cast<std::ptrdiff_t>(count));
  return count;
}

// Each drive is moved from completion to completion, so that what is issued in between is issued at
// the right moment however coarsely the clock moves.
void ModelledReader::advance() {
  const auto now_us = static_cast<double>(clock_.now_us());
  for (Drive& drive : drives_) {
    while (!drive.issued.empty() && drive.issued.front().done_us <= now_us) {
      const Issued issued = drive.issued.front();
      drive.issued.pop_front();
      complete(drive, issued);
      issue(drive, issued.done_us);
    }
  }
}

void ModelledReader::issue(Drive& drive, double at_us) {
  while (!drive.queue.empty() && static_cast<int>(drive.issued.size()) < drive.spec.depth) {
    const auto next = drive.queue.begin();
    const std::int64_t bytes = bytes_of(next->second);
    const bool speculative = next->first.read_class != ReadClass::kDemand;
    if (speculative && drive.speculative_bytes > 0 &&
        drive.speculative_bytes + bytes > options_.max_speculative_bytes)
      return;
    queued_bytes(next->first.read_class) -= bytes;
    if (speculative) drive.speculative_bytes += bytes;
    if (drive.issued.empty()) drive.busy_since_us = at_us;
    drive.free_us = std::max(drive.free_us, at_us + static_cast<double>(drive.spec.latency_us)) +
                    static_cast<double>(bytes) * 1e6 / drive.spec.bytes_per_second;
    queued_.erase(next->second.tag);
    drive.issued.push_back({next->second, bytes, drive.free_us});
    drive.queue.erase(next);
  }
}

void ModelledReader::complete(Drive& drive, const Issued& issued) {
  if (drive.issued.empty()) drive.busy_us += std::llround(issued.done_us - drive.busy_since_us);
  if (issued.read.read_class != ReadClass::kDemand) drive.speculative_bytes -= issued.bytes;
  BlockDone& done = done_.emplace_back();
  done.tag = issued.read.tag;
  done.replica = std::max(issued.read.replica, 0);
  if (options_.deliver) done.status = options_.deliver(issued.read);
  if (!done.status.ok()) {
    done.outcome = ReadOutcome::kFailed;
  } else {
    bytes_read_ += issued.bytes;
  }
}

void ModelledReader::wait(std::chrono::microseconds timeout) {
  advance();
  const std::int64_t next_us = next_event_us();
  if (!done_.empty() || next_us == kNever || !options_.sleep) return;
  const std::int64_t until_us = next_us - clock_.now_us();
  options_.sleep(std::min(timeout, std::chrono::microseconds(std::max<std::int64_t>(until_us, 1))));
}

std::int64_t ModelledReader::next_event_us() const {
  double next_us = std::numeric_limits<double>::infinity();
  for (const Drive& drive : drives_) {
    if (!drive.issued.empty()) next_us = std::min(next_us, drive.issued.front().done_us);
  }
  return std::isinf(next_us) ? kNever : static_cast<std::int64_t>(std::ceil(next_us));
}

ReaderLoad ModelledReader::load() const {
  ReaderLoad load;
  const auto now_us = static_cast<double>(clock_.now_us());
  load.num_drives = static_cast<int>(drives_.size());
  load.queued_demand_bytes = queued_demand_bytes_;
  load.queued_speculative_bytes = queued_speculative_bytes_;
  load.bytes_read = bytes_read_;
  for (const Drive& drive : drives_) {
    for (const Issued& issued : drive.issued) load.reading_bytes += issued.bytes;
    load.busy_us += drive.busy_us;
    if (!drive.issued.empty()) load.busy_us += std::llround(now_us - drive.busy_since_us);
    load.bytes_per_second += drive.spec.bytes_per_second;
  }
  return load;
}

}  // namespace stoker
