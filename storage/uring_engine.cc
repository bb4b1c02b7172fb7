#include "storage/uring_engine.h"

#include <liburing.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <system_error>
#include <utility>

namespace stoker::storage {
namespace {

constexpr int kEntries = 256;            // of the submission queue
constexpr int kCapacity = kEntries - 1;  // one is the read of the eventfd
constexpr int kMaxBuffers = 16384;       // the kernel's own limit
constexpr std::uint64_t kWakeUser = ~std::uint64_t{0};

std::string message_of(int code) { return std::generic_category().message(code); }

std::string locked_memory_limit() {
  rlimit limit{};
  if (::getrlimit(RLIMIT_MEMLOCK, &limit) != 0 || limit.rlim_cur == RLIM_INFINITY)
    return "no limit";
  return fmt::format("{} KiB", limit.rlim_cur >> 10);
}

}  // namespace

Result<std::unique_ptr<UringEngine>> UringEngine::open(std::span<const int> files) {
  std::unique_ptr<UringEngine> engine(new UringEngine);
  engine->files_.assign(files.begin(), files.end());
  engine->ring_ = std::make_unique<io_uring>();
  engine->ring_->ring_fd = -1;

  // 1. The ring, with what this kernel knows: completions worked off by the thread that waits for
  // them (6.1), no interrupts of it (5.19), or neither. Disabled until bind(), so that the thread
  // that opens need not be the one that reads.
  constexpr std::array<unsigned, 3> kFlags = {
      IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN, IORING_SETUP_COOP_TASKRUN, 0};
  int code = -EINVAL;
  for (std::size_t i = 0; i < kFlags.size() && code == -EINVAL; ++i) {
    io_uring_params params{};
    params.flags = kFlags[i] | IORING_SETUP_R_DISABLED;
    code = io_uring_queue_init_params(kEntries, engine->ring_.get(), &params);
  }
  if (code != 0) {
    engine->ring_ = nullptr;
    return make_error(ErrorCode::kUnsupported, "the kernel refuses io_uring ({})",
                      message_of(-code));
  }

  // 2. What wakes it.
  engine->wake_ = Descriptor(::eventfd(0, EFD_CLOEXEC));
  if (!engine->wake_.is_open()) {
    return make_error(ErrorCode::kResource, "no eventfd: {}", message_of(errno));
  }

  // 3. The tables of files and of memory.
  engine->register_files();
  engine->buffer_table_ =
      io_uring_register_buffers_sparse(engine->ring_.get(), kMaxBuffers) == 0;  // 5.19
  return engine;
}

UringEngine::~UringEngine() {
  if (ring_ != nullptr) io_uring_queue_exit(ring_.get());
}

int UringEngine::capacity() const { return kCapacity; }

// Saves taking and dropping a reference for each read. Without it plain descriptors do.
void UringEngine::register_files() {
  files_registered_ =
      !files_.empty() && io_uring_register_files(ring_.get(), files_.data(),
                                                 static_cast<unsigned>(files_.size())) == 0;
}

void UringEngine::bind() {
  // liburing 2.3 declares io_uring_enable_rings() but its library lacks it.
  const int code = io_uring_register(static_cast<unsigned>(ring_->ring_fd),
                                     IORING_REGISTER_ENABLE_RINGS, nullptr, 0);
  CHECK(code == 0, "{}", message_of(-code));
  arm_wake();
  submit();
}

// A read of the eventfd that is always under way: one wait covers completions and wishes.
void UringEngine::arm_wake() {
  io_uring_sqe* sqe = io_uring_get_sqe(ring_.get());
  CHECK(sqe != nullptr);
  io_uring_prep_read(sqe, wake_.get(), &wake_count_, sizeof(wake_count_), 0);
  io_uring_sqe_set_data64(sqe, kWakeUser);
}

void UringEngine::wake() {
  const std::uint64_t one = 1;
  while (::write(wake_.get(), &one, sizeof(one)) < 0 && errno == EINTR) {
  }
}

void UringEngine::forget_overlapping(std::span<std::byte> memory) {
  const std::byte* const end = memory.data() + memory.size();
  std::erase_if(regions_, [&](const Region& region) {
    if (region.end <= memory.data() || region.begin >= end) return false;
    iovec nothing{};
    __u64 tag = 0;
    const int code = io_uring_register_buffers_update_tag(
        ring_.get(), static_cast<unsigned>(region.index), &nothing, &tag, 1);
    CHECK(code == 1, "{}", message_of(-code));
    free_buffers_.push_back(region.index);
    return true;
  });
}

Status UringEngine::register_memory(std::span<std::byte> memory) {
  if (!buffer_table_) {
    return make_error(ErrorCode::kUnsupported,
                      "this kernel cannot register memory while reads go on (5.19 and later can)");
  }
  forget_overlapping(memory);
  if (free_buffers_.empty() && next_buffer_ == kMaxBuffers) {
    return make_error(ErrorCode::kResource, "the kernel registers at most {} stretches of memory",
                      kMaxBuffers);
  }
  const int index = free_buffers_.empty() ? next_buffer_ : free_buffers_.back();
  iovec stretch{memory.data(), memory.size()};
  __u64 tag = 0;  // no completion when it goes
  const int code = io_uring_register_buffers_update_tag(ring_.get(), static_cast<unsigned>(index),
                                                        &stretch, &tag, 1);
  if (code == -ENOMEM) {
    return make_error(
        ErrorCode::kResource,
        "memory for reads cannot be locked ({} bytes; the limit is {}): raise it with "
        "`ulimit -l`, or LimitMEMLOCK= of a systemd unit",
        memory.size(), locked_memory_limit());
  }
  if (code != 1) {
    return make_error(ErrorCode::kIo, "memory for reads cannot be registered: {}",
                      message_of(-code));
  }
  if (free_buffers_.empty()) {
    ++next_buffer_;
  } else {
    free_buffers_.pop_back();
  }
  const Region region{memory.data(), memory.data() + memory.size(), index};
  const auto at = std::upper_bound(
      regions_.begin(), regions_.end(), region.begin,
      [](const std::byte* begin, const Region& other) { return begin < other.begin; });
  regions_.insert(at, region);
  return {};
}

const UringEngine::Region* UringEngine::region_of(std::span<const std::byte> dst) const {
  auto at = std::upper_bound(
      regions_.begin(), regions_.end(), dst.data(),
      [](const std::byte* begin, const Region& other) { return begin < other.begin; });
  if (at == regions_.begin()) return nullptr;
  --at;
  return dst.data() + dst.size() <= at->end ? &*at : nullptr;
}

void UringEngine::collect(const ReadOp& op) {
  io_uring_sqe* sqe = io_uring_get_sqe(ring_.get());
  CHECK(sqe != nullptr, "more than {} reads collected", kCapacity);
  const int file = files_registered_ ? op.file : files_[static_cast<std::size_t>(op.file)];
  const auto bytes = static_cast<unsigned>(op.dst.size());
  const auto offset = static_cast<__u64>(op.offset);
  if (const Region* region = region_of(op.dst)) {
    io_uring_prep_read_fixed(sqe, file, op.dst.data(), bytes, offset, region->index);
  } else {
    io_uring_prep_read(sqe, file, op.dst.data(), bytes, offset);
  }
  if (files_registered_) io_uring_sqe_set_flags(sqe, IOSQE_FIXED_FILE);
  CHECK(op.user != kWakeUser);
  io_uring_sqe_set_data64(sqe, op.user);
}

void UringEngine::submit() {
  // What the kernel does not take now (it is out of memory for requests) stays in the queue and
  // goes with the next call; reap() makes one.
  const int code = io_uring_submit(ring_.get());
  CHECK(code >= 0 || code == -EAGAIN || code == -EBUSY || code == -EINTR || code == -ENOMEM, "{}",
        message_of(-code));
}

std::size_t UringEngine::take_completed(std::span<ReadOpDone> out, bool& woken) {
  std::size_t count = 0;
  unsigned seen = 0;
  unsigned head = 0;
  io_uring_cqe* cqe = nullptr;
  io_uring_for_each_cqe(ring_.get(), head, cqe) {
    if (cqe->user_data == kWakeUser) {
      woken = true;
    } else {
      if (count == out.size()) break;
      out[count++] = {cqe->user_data, cqe->res};
    }
    ++seen;
  }
  io_uring_cq_advance(ring_.get(), seen);
  if (woken) {
    arm_wake();
    submit();
  }
  return count;
}

std::size_t UringEngine::reap(std::span<ReadOpDone> out, bool wait) {
  bool woken = false;
  std::size_t count = take_completed(out, woken);
  while (count == 0 && !woken) {
    const int code = wait ? io_uring_submit_and_wait(ring_.get(), 1)
                          : io_uring_submit_and_get_events(ring_.get());
    CHECK(code >= 0 || code == -EAGAIN || code == -EBUSY || code == -EINTR || code == -ENOMEM, "{}",
          message_of(-code));
    count = take_completed(out, woken);
    if (!wait) break;
  }
  return count;
}

}  // namespace stoker::storage
