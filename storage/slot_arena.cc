#include "storage/slot_arena.h"

#include <pthread.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <fstream>
#include <limits>
#include <string>
#include <system_error>
#include <utility>

namespace stoker::storage {
namespace {

constexpr std::int64_t kPage = 4096;
constexpr std::int64_t kHugePage = std::int64_t{2} << 20;
constexpr std::int64_t kMaxSegment = std::int64_t{1} << 30;

// A stretch is registered as one, by the thread that reads: 64 MiB take it 2.1 ms on 4 KiB pages,
// 0.3 ms on huge ones (1 GiB: 27 ms and 6 ms), in which nothing is issued. The kernel takes 16384
// of them.
constexpr std::int64_t kStretch = std::int64_t{64} << 20;
constexpr std::int64_t kMaxStretches = 8192;

// Memory is had by touching it, and who touches too much is not told but killed: stop before.
constexpr std::int64_t kKeepFree = std::int64_t{128} << 20;

std::int64_t available_bytes() {
  std::ifstream info("/proc/meminfo");
  std::string name;
  std::int64_t kib = 0;
  while (info >> name >> kib) {
    if (name == "MemAvailable:") return kib << 10;
    info.ignore(std::numeric_limits<std::streamsize>::max(), '\n');
  }
  return std::numeric_limits<std::int64_t>::max();
}

// Makes pages present. Before Linux 5.14 by writing to each.
Status fault_in(std::span<std::byte> memory) {
#ifdef MADV_POPULATE_WRITE
  if (::madvise(memory.data(), memory.size(), MADV_POPULATE_WRITE) == 0) return {};
  if (errno != EINVAL) {
    return make_error(ErrorCode::kResource, "no memory for {} bytes of slots: {}", memory.size(),
                      std::generic_category().message(errno));
  }
#endif
  for (std::size_t at = 0; at < memory.size(); at += kPage) {
    *static_cast<volatile std::byte*>(memory.data() + at) = std::byte{0};
  }
  return {};
}

}  // namespace

void HostSlotArena::Unmap::operator()(std::byte* memory) const { ::munmap(memory, bytes); }

Result<std::unique_ptr<HostSlotArena>> HostSlotArena::create(const SlotArenaOptions& options) {
  CHECK(options.slot_bytes > 0 && options.slot_bytes % kPage == 0 &&
            options.slot_bytes <= std::min(options.segment_bytes, kMaxSegment),
        "slots of {} bytes", options.slot_bytes);
  if (options.budget_bytes < options.slot_bytes) {
    return make_error(ErrorCode::kInvalidArgument,
                      "{} bytes for experts hold not even one, which takes {} bytes",
                      options.budget_bytes, options.slot_bytes);
  }
  return std::unique_ptr<HostSlotArena>(new HostSlotArena(options));
}

HostSlotArena::HostSlotArena(const SlotArenaOptions& options) : slot_bytes_(options.slot_bytes) {
  num_slots_ = static_cast<int>(
      std::min<std::int64_t>(options.budget_bytes / slot_bytes_, std::numeric_limits<int>::max()));
  segment_slots_ = static_cast<int>(std::min(options.segment_bytes, kMaxSegment) / slot_bytes_);
  const std::int64_t stretch = std::max(kStretch, options.budget_bytes / kMaxStretches);
  stretch_slots_ = static_cast<int>(std::max<std::int64_t>(1, stretch / slot_bytes_));
  segments_.resize(static_cast<std::size_t>((num_slots_ + segment_slots_ - 1) / segment_slots_));
}

HostSlotArena::~HostSlotArena() { stop(); }

void HostSlotArena::start(std::function<void(std::span<std::byte>)> prepare) {
  CHECK(!thread_.joinable() && num_usable() == 0, "the arena grows already");
  try {
    thread_ = std::thread([this, prepare = std::move(prepare)] { grow(prepare); });
  } catch (const std::system_error& error) {
    give_up(make_error(ErrorCode::kResource, "no thread to make slots with: {}", error.what()));
  }
}

void HostSlotArena::give_up(Error error) {
  const std::lock_guard lock(mutex_);
  error_ = std::move(error);
}

void HostSlotArena::stop() {
  stop_ = true;
  if (thread_.joinable()) thread_.join();
}

std::byte* HostSlotArena::slot(int index) const {
  CHECK(index >= 0 && index < num_usable(), "slot {} of {}", index, num_usable());
  return segments_[static_cast<std::size_t>(index / segment_slots_)].get() +
         index % segment_slots_ * slot_bytes_;
}

Status HostSlotArena::status() const {
  const std::lock_guard lock(mutex_);
  if (error_) return *error_;
  return {};
}

void HostSlotArena::grow(const std::function<void(std::span<std::byte>)>& prepare) {
  pthread_setname_np(pthread_self(), "stoker-arena");
  ::setpriority(PRIO_PROCESS, static_cast<id_t>(::syscall(SYS_gettid)), 10);  // of this thread
  while (!stop_ && num_usable() < num_slots_) {
    const int first = num_usable();
    const int segment_end = (first / segment_slots_ + 1) * segment_slots_;
    const int end = std::min({first + stretch_slots_, segment_end, num_slots_});
    Status status = add_stretch(first, end, prepare);
    if (!status.ok()) return give_up(std::move(status).error());
    num_usable_.store(end, std::memory_order_release);
  }
}

Status HostSlotArena::add_stretch(int first_slot, int end_slot,
                                  const std::function<void(std::span<std::byte>)>& prepare) {
  // 1. Address space, a segment at a time.
  Segment& segment = segments_[static_cast<std::size_t>(first_slot / segment_slots_)];
  const int in_segment = first_slot % segment_slots_;
  if (in_segment == 0) {
    const std::int64_t slots = std::min(segment_slots_, num_slots_ - first_slot);
    ASSIGN_OR_RETURN(segment, map(slots * slot_bytes_));
  }
  // 2. Memory.
  const std::int64_t bytes = (end_slot - first_slot) * slot_bytes_;
  const std::int64_t available = available_bytes();
  if (available < bytes + kKeepFree) {
    return make_error(ErrorCode::kResource,
                      "memory runs short: {} MiB of the {} MiB for experts are in use and {} MiB "
                      "are left on this machine; a smaller --ram leaves room",
                      (first_slot * slot_bytes_) >> 20, (num_slots_ * slot_bytes_) >> 20,
                      available >> 20);
  }
  const std::span<std::byte> memory(segment.get() + in_segment * slot_bytes_,
                                    static_cast<std::size_t>(bytes));
  RETURN_IF_ERROR(fault_in(memory));
  // 3. Whatever else the memory needs.
  if (prepare) prepare(memory);
  return {};
}

// A segment that begins on a huge page.
Result<HostSlotArena::Segment> HostSlotArena::map(std::int64_t bytes) const {
  const auto wanted = static_cast<std::size_t>(bytes);
  const std::size_t mapped = wanted + kHugePage - kPage;
  void* const raw = ::mmap(nullptr, mapped, PROT_READ | PROT_WRITE,
                           MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (raw == MAP_FAILED) {
    return make_error(ErrorCode::kResource, "no memory for {} MiB of slots: {}", bytes >> 20,
                      std::generic_category().message(errno));
  }
  auto* const begin = static_cast<std::byte*>(raw);
  const std::size_t before =
      (kHugePage - reinterpret_cast<std::uintptr_t>(begin) % kHugePage) % kHugePage;
  if (before > 0) ::munmap(begin, before);
  if (mapped > before + wanted) ::munmap(begin + before + wanted, mapped - before - wanted);
  Segment segment(begin + before, Unmap{wanted});
  ::madvise(segment.get(), wanted, MADV_HUGEPAGE);  // refused: small pages
  interleave_.apply({segment.get(), wanted});
  return segment;
}

}  // namespace stoker::storage
