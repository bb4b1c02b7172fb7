#include "storage/drive.h"

#include <algorithm>
#include <cerrno>
#include <system_error>
#include <utility>

#include "core/base/clock.h"

namespace stoker::storage {
namespace {

// EINTR, EAGAIN and reads that bring less than a page are repeated; endless repetition is not.
constexpr int kMaxStalled = 100;

// A bandwidth is taken from this much time under load, and then moves a quarter of the way: drives
// that switch between two speeds within seconds should neither be believed at once nor for long.
constexpr std::int64_t kMeasureUs = 20'000;
constexpr double kMeasureWeight = 0.25;

// In flight. No single one is right: a virtual disk gave 2.28 GB/s with 8 MiB and 1.98 from 16 MiB
// on, an hour later 1.70 with 8 and 1.80 from 16 on; NVMe drives want 16 to 64.
constexpr std::array<std::int64_t, 4> kDepths = {8 << 20, 16 << 20, 32 << 20, 64 << 20};

std::int64_t now_us() { return SteadyClock().now_us(); }

}  // namespace

Drive::Drive(const ExtentSource& source, std::unique_ptr<Engine> engine, DriveLimits limits,
             DriveLoad& load)
    : source_(source),
      engine_(std::move(engine)),
      load_(load),
      speculative_limit_(limits.speculative_bytes),
      demand_limit_(limits.demand_bytes > 0 ? std::span<const std::int64_t>(&limits.demand_bytes, 1)
                                            : std::span<const std::int64_t>(kDepths)) {
  const auto capacity = static_cast<std::size_t>(engine_->capacity());
  issued_.resize(capacity);
  ops_done_.resize(capacity);
  for (std::size_t place = capacity; place > 0; --place) free_places_.push_back(place - 1);
}

const ExtentFile& Drive::file_of(const Extent& extent) const {
  return source_.extent_files()[static_cast<std::size_t>(extent.file)];
}

void Drive::add(const QueuedRead& read) { queue_.push(read); }

void Drive::promote(std::uint32_t tag, ReadClass read_class, float priority) {
  const QueuedRead* queued = queue_.find(tag);
  if (queued == nullptr) return;
  load_.queued_bytes(queued->read.read_class) -= queued->bytes;
  load_.queued_bytes(read_class) += queued->bytes;
  queue_.promote(tag, read_class, priority);
}

void Drive::cancel(std::uint32_t tag) {
  if (queue_.find(tag) == nullptr) return;
  const QueuedRead taken = queue_.remove(tag);
  load_.queued_bytes(taken.read.read_class) -= taken.bytes;
  done_.push_back({tag, ReadOutcome::kCancelled, taken.read.replica, {}});
}

void Drive::cancel_all() {
  while (!queue_.empty()) cancel(queue_.top().read.tag);
}

void Drive::issue() {
  bool any = false;
  while (!queue_.empty()) {
    const QueuedRead& next = queue_.top();
    const std::int64_t limit = next.read.read_class == ReadClass::kDemand
                                   ? demand_limit_.bytes_in_flight()
                                   : speculative_limit_;
    if (reading_bytes_ > 0 && reading_bytes_ + next.bytes > limit) break;
    std::array<Extent, kMaxExtents> extents;
    const int count = source_.extents(next.read.id, next.read.block, next.read.replica, extents);
    CHECK(count > 0 && count <= kMaxExtents, "{} extents of block {}", count, next.read.block);
    if (num_ops_ + count > engine_->capacity()) break;
    issue(queue_.pop(), {extents.data(), static_cast<std::size_t>(count)});
    any = true;
  }
  full_ = !queue_.empty() && queue_.top().read.read_class == ReadClass::kDemand;
  count_time();
  if (any) engine_->submit();
}

void Drive::issue(const QueuedRead& next, std::span<const Extent> extents) {
  const std::size_t place = free_places_.back();
  free_places_.pop_back();
  Issued& issued = issued_[place];
  issued.read = next.read;
  issued.bytes = next.bytes;
  issued.num_pending = static_cast<int>(extents.size());
  issued.error.reset();
  ++num_issued_;
  reading_bytes_ += next.bytes;
  load_.queued_bytes(next.read.read_class) -= next.bytes;
  load_.reading_bytes += next.bytes;
  for (std::size_t i = 0; i < extents.size(); ++i) {
    const Extent& extent = extents[i];
    const std::int64_t left = file_of(extent).size - extent.offset;
    CHECK(left > 0, "{} ends before byte {}", file_of(extent).path.string(), extent.offset);
    issued.stretches[i] = {extent, std::min(extent.bytes, left), 0, 0};
    collect(place, i);
  }
}

void Drive::collect(std::size_t place, std::size_t stretch) {
  const Issued& issued = issued_[place];
  const Stretch& what = issued.stretches[stretch];
  std::byte* const dst = issued.read.dst + what.extent.dst_offset + what.got;
  engine_->collect({place * kMaxExtents + stretch,
                    what.extent.file,
                    what.extent.offset + what.got,
                    {dst, static_cast<std::size_t>(what.extent.bytes - what.got)}});
  ++num_ops_;
}

void Drive::reap(bool wait) {
  std::size_t count = engine_->reap(ops_done_, wait);
  while (count > 0) {
    const int ops_before = num_ops_ - static_cast<int>(count);
    for (std::size_t i = 0; i < count; ++i) complete(ops_done_[i]);
    if (num_ops_ > ops_before) engine_->submit();  // some go on
    count = engine_->reap(ops_done_, /*wait=*/false);
  }
  count_time();
}

void Drive::complete(const ReadOpDone& op) {
  --num_ops_;
  const std::size_t place = op.user / kMaxExtents;
  Issued& issued = issued_[place];
  CHECK(issued.num_pending > 0, "an answer to nothing, number {}", op.user);
  Stretch& stretch = issued.stretches[op.user % kMaxExtents];
  std::optional<Error> error = progress(issued, stretch, op.result);
  if (!error && stretch.got < stretch.wanted) return collect(place, op.user % kMaxExtents);
  if (error && !issued.error) issued.error = std::move(error);
  if (--issued.num_pending == 0) finish(place);
}

// Takes what a read brought into `stretch.got`, or says why there is no going on.
std::optional<Error> Drive::progress(Issued& issued, Stretch& stretch, std::int32_t result) {
  const Extent& extent = stretch.extent;
  const std::int64_t at = extent.offset + stretch.got;
  if (result < 0 && ((result != -EINTR && result != -EAGAIN) || stretch.stalled == kMaxStalled)) {
    return make_error(ErrorCode::kIo, "{}: cannot read {} bytes at byte {}: {}",
                      file_of(extent).path.string(), stretch.wanted - stretch.got, at,
                      std::generic_category().message(-result));
  }
  const std::int64_t got = stretch.got + std::max(result, 0);
  if (got >= stretch.wanted) {
    stretch.got = stretch.wanted;
    load_.bytes_read += stretch.wanted;
    came_bytes_ += stretch.wanted;
    return {};
  }
  // Direct I/O goes on at a page.
  const std::int64_t whole = got / kExtentAlign * kExtentAlign;
  stretch.stalled = whole > stretch.got ? 0 : stretch.stalled + 1;
  if (result == 0 || stretch.stalled > kMaxStalled) {
    return make_error(ErrorCode::kIo,
                      "{}: ends at byte {}, {} more were there when it was opened (expert {} of "
                      "layer {})",
                      file_of(extent).path.string(), extent.offset + got, stretch.wanted - got,
                      issued.read.id.expert, issued.read.id.layer);
  }
  stretch.got = whole;
  return {};
}

void Drive::finish(std::size_t place) {
  Issued& issued = issued_[place];
  BlockDone done{issued.read.tag, ReadOutcome::kRead, issued.read.replica, {}};
  if (issued.error) {
    done.outcome = ReadOutcome::kFailed;
    done.status = std::move(*issued.error);
    issued.error.reset();
  }
  done_.push_back(std::move(done));
  reading_bytes_ -= issued.bytes;
  load_.reading_bytes -= issued.bytes;
  --num_issued_;
  free_places_.push_back(place);
}

// Called when reads were issued or have completed: keeps the time with any read under way, and
// measures the drive while it has all that it may have.
void Drive::count_time() {
  const std::int64_t now = now_us();
  if (num_issued_ > 0 && !load_.busy.running()) load_.busy.start(now);
  if (num_issued_ == 0 && load_.busy.running()) load_.busy.stop(now);
  measure(now);
}

void Drive::measure(std::int64_t now_us) {
  if (full_since_us_ != 0) {
    demand_limit_.add(came_bytes_, now_us - full_since_us_);
    full_us_ += now_us - full_since_us_;
    full_bytes_ += came_bytes_;
  }
  came_bytes_ = 0;
  full_since_us_ = full_ ? now_us : 0;
  if (full_us_ < kMeasureUs) return;
  const double measured = static_cast<double>(full_bytes_) * 1e6 / static_cast<double>(full_us_);
  const double known = load_.bytes_per_second;
  load_.bytes_per_second = known == 0.0 ? measured : known + kMeasureWeight * (measured - known);
  full_us_ = 0;
  full_bytes_ = 0;
}

}  // namespace stoker::storage
