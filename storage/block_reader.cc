#include "storage/block_reader.h"

#include <sys/stat.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <map>
#include <mutex>
#include <system_error>
#include <utility>

#include "core/base/clock.h"
#include "core/base/descriptor.h"
#include "storage/drive_thread.h"
#include "storage/pread_engine.h"
#include "storage/read_file.h"
#include "storage/uring_engine.h"

namespace stoker::storage {
namespace {

class Notices {
 public:
  void add(std::string notice) {
    const std::lock_guard lock(mutex_);
    if (std::find(notices_.begin(), notices_.end(), notice) == notices_.end()) {
      notices_.push_back(std::move(notice));
    }
  }
  std::vector<std::string> all() const {
    const std::lock_guard lock(mutex_);
    return notices_;
  }

 private:
  mutable std::mutex mutex_;
  std::vector<std::string> notices_;
};

class FileBlockReader final : public BlockReader {
 public:
  FileBlockReader(const ExtentSource& source, const ReaderOptions& options)
      : source_(source), options_(options) {}

  Status open();

  Status register_memory(std::span<std::byte> memory) override;
  void submit(std::span<const BlockRead> reads) override;
  void promote(std::uint32_t tag, ReadClass read_class, float priority) override;
  void cancel(std::uint32_t tag) override;
  std::size_t reap(std::span<BlockDone> out) override;
  void wait(std::chrono::microseconds timeout) override;
  ReaderLoad load() const override;

  std::vector<std::string> notices() const override { return notices_.all(); }
  std::string_view engine_name() const override { return engine_name_; }
  bool direct() const override { return direct_; }

 private:
  struct Choice {
    int replica = 0;
    int drive = 0;
    std::int64_t bytes = 0;
  };

  Status open_files();
  Result<ReadFile> open_file(const ExtentFile& file);
  Result<std::unique_ptr<Engine>> open_engine(std::span<const int> files);
  Choice choose(const BlockRead& read) const;
  double usual_rate() const;
  double expected_seconds(const DriveLoad& load, ReadClass read_class, std::int64_t bytes) const;

  const ExtentSource& source_;
  const ReaderOptions options_;
  Notices notices_;
  std::vector<ReadFile> files_;
  std::vector<int> drive_of_file_;
  bool direct_ = true;
  std::string engine_name_;
  std::atomic<bool> can_register_{true};
  std::int64_t num_unfinished_ = 0;  // submitted, not reaped
  Outbox outbox_;
  std::vector<std::unique_ptr<DriveThread>> drives_;
};

Status FileBlockReader::open() {
  CHECK(options_.demand_bytes_in_flight >= 0 && options_.speculative_bytes_in_flight > 0);
  RETURN_IF_ERROR(open_files());
  std::vector<int> descriptors;
  descriptors.reserve(files_.size());
  for (const ReadFile& file : files_) descriptors.push_back(file.fd());
  const int num_drives = *std::max_element(drive_of_file_.begin(), drive_of_file_.end()) + 1;
  for (int drive = 0; drive < num_drives; ++drive) {
    // Every engine knows all files: an expert of a checkpoint may lie in two of them.
    ASSIGN_OR_RETURN(std::unique_ptr<Engine> engine, open_engine(descriptors));
    engine_name_ = engine->name();
    if (options_.wrap_engine) engine = options_.wrap_engine(std::move(engine));
    const DriveLimits limits{options_.demand_bytes_in_flight, options_.speculative_bytes_in_flight};
    try {
      drives_.push_back(std::make_unique<DriveThread>(source_, std::move(engine), limits, outbox_));
    } catch (const std::system_error& error) {
      return make_error(ErrorCode::kResource, "no thread to read with: {}", error.what());
    }
  }
  return {};
}

Status FileBlockReader::open_files() {
  std::map<dev_t, int> drives;
  for (const ExtentFile& file : source_.extent_files()) {
    ASSIGN_OR_RETURN(ReadFile opened, open_file(file));
    if (opened.size() != file.size) {
      return make_error(ErrorCode::kIo,
                        "{}: is {} bytes, was {} when the model was opened; it must not change "
                        "while the model runs",
                        file.path.string(), opened.size(), file.size);
    }
    struct stat info{};
    if (::fstat(opened.fd(), &info) != 0) {
      return system_error(file.path, "cannot stat");
    }
    const int next = static_cast<int>(drives.size());
    drive_of_file_.push_back(drives.emplace(info.st_dev, next).first->second);
    files_.push_back(std::move(opened));
  }
  CHECK(!files_.empty(), "a source without files");
  return {};
}

Result<ReadFile> FileBlockReader::open_file(const ExtentFile& file) {
  if (options_.direct != DirectChoice::kOff) {
    Result<ReadFile> opened = ReadFile::open_direct(file.path);
    if (opened.ok() || opened.error().code() != ErrorCode::kUnsupported) return opened;
    if (options_.direct == DirectChoice::kOn) {
      return make_error(ErrorCode::kUnsupported, "{}; --direct auto reads through the page cache",
                        opened.error().message());
    }
    // Of the directory, not of each file in it.
    notices_.add(fmt::format(
        "{}: the file system refuses direct I/O; reading through the page cache, which costs "
        "processor time and memory",
        file.path.parent_path().string()));
  }
  direct_ = false;
  return ReadFile::open(file.path);
}

Result<std::unique_ptr<Engine>> FileBlockReader::open_engine(std::span<const int> files) {
  if (options_.io != IoChoice::kPread) {
    Result<std::unique_ptr<UringEngine>> ring = UringEngine::open(files);
    if (ring.ok()) return std::unique_ptr<Engine>(std::move(ring).value());
    if (options_.io == IoChoice::kUring) {
      return make_error(ring.error().code(),
                        "{}; containers often forbid it. --io auto or pread does without",
                        ring.error().message());
    }
    notices_.add(fmt::format("{}; reading with a pool of {} threads", ring.error().message(),
                             options_.pread_threads));
  }
  ASSIGN_OR_RETURN(std::unique_ptr<PreadEngine> pool,
                   PreadEngine::open(files, options_.pread_threads));
  return std::unique_ptr<Engine>(std::move(pool));
}

Status FileBlockReader::register_memory(std::span<std::byte> memory) {
  if (!options_.register_memory) return {};
  for (const auto& drive : drives_) {
    // After a refusal the rest would be refused as well.
    if (!can_register_) return make_error(ErrorCode::kResource, "memory cannot be registered");
    const Status status = drive->register_memory(memory);
    if (status.ok()) continue;
    if (can_register_.exchange(false)) {
      notices_.add(
          fmt::format("{}; reading into memory that is not registered, which costs some "
                      "processor time",
                      status.error().message()));
    }
    return status;
  }
  return {};
}

// The rate that a drive which has not been measured is taken to have.
double FileBlockReader::usual_rate() const {
  double sum = 0.0;
  int known = 0;
  for (const auto& drive : drives_) {
    const double rate = drive->load().bytes_per_second;
    sum += rate;
    known += rate > 0.0 ? 1 : 0;
  }
  return known == 0 ? 1.0 : sum / known;
}

double FileBlockReader::expected_seconds(const DriveLoad& load, ReadClass read_class,
                                         std::int64_t bytes) const {
  std::int64_t ahead = load.reading_bytes + load.queued_demand_bytes;
  if (read_class != ReadClass::kDemand) ahead += load.queued_speculative_bytes;
  const double measured = load.bytes_per_second;
  return static_cast<double>(ahead + bytes) / (measured > 0.0 ? measured : usual_rate());
}

FileBlockReader::Choice FileBlockReader::choose(const BlockRead& read) const {
  std::array<Extent, kMaxExtents> extents;
  std::optional<Choice> best;
  double best_seconds = 0.0;
  const bool any = read.replica == kAnyReplica;
  for (int replica = any ? 0 : read.replica; any || !best; ++replica) {
    const int count = source_.extents(read.id, read.block, replica, extents);
    if (count == 0) break;
    Choice choice{replica, drive_of_file_[static_cast<std::size_t>(extents[0].file)], 0};
    for (int i = 0; i < count; ++i) choice.bytes += extents[static_cast<std::size_t>(i)].bytes;
    const double seconds =
        drives_.size() == 1
            ? 0.0
            : expected_seconds(drives_[static_cast<std::size_t>(choice.drive)]->load(),
                               read.read_class, choice.bytes);
    if (!best || seconds < best_seconds) {
      best = choice;
      best_seconds = seconds;
    }
  }
  CHECK(best.has_value(), "expert {} of layer {} has no copy {}", read.id.expert, read.id.layer,
        read.replica);
  return *best;
}

void FileBlockReader::submit(std::span<const BlockRead> reads) {
  for (const BlockRead& read : reads) {
    CHECK(reinterpret_cast<std::uintptr_t>(read.dst) % kExtentAlign == 0);
    const Choice choice = choose(read);
    QueuedRead queued{read, choice.bytes};
    queued.read.replica = choice.replica;
    drives_[static_cast<std::size_t>(choice.drive)]->stage(queued);
  }
  num_unfinished_ += std::ssize(reads);
  for (const auto& drive : drives_) drive->flush();
}

void FileBlockReader::promote(std::uint32_t tag, ReadClass read_class, float priority) {
  for (const auto& drive : drives_) {
    drive->stage_promote(tag, read_class, priority);
    drive->flush();
  }
}

void FileBlockReader::cancel(std::uint32_t tag) {
  for (const auto& drive : drives_) {
    drive->stage_cancel(tag);
    drive->flush();
  }
}

std::size_t FileBlockReader::reap(std::span<BlockDone> out) {
  if (num_unfinished_ == 0) return 0;
  const std::size_t count = outbox_.take(out);
  num_unfinished_ -= static_cast<std::int64_t>(count);
  return count;
}

void FileBlockReader::wait(std::chrono::microseconds timeout) {
  if (num_unfinished_ > 0) outbox_.wait(timeout);
}

ReaderLoad FileBlockReader::load() const {
  ReaderLoad sum;
  sum.num_drives = static_cast<int>(drives_.size());
  const std::int64_t now = SteadyClock().now_us();
  bool all_known = true;
  for (const auto& drive : drives_) {
    const DriveLoad& load = drive->load();
    sum.queued_demand_bytes += load.queued_demand_bytes;
    sum.queued_speculative_bytes += load.queued_speculative_bytes;
    sum.reading_bytes += load.reading_bytes;
    sum.bytes_read += load.bytes_read;
    sum.busy_us += load.busy.total_us(now);
    const double rate = load.bytes_per_second;
    sum.bytes_per_second += rate;
    all_known = all_known && rate > 0.0;
  }
  if (!all_known) sum.bytes_per_second = 0.0;
  return sum;
}

}  // namespace

Result<std::unique_ptr<BlockReader>> open_reader(const ExtentSource& source,
                                                 const ReaderOptions& options) {
  auto reader = std::make_unique<FileBlockReader>(source, options);
  RETURN_IF_ERROR(reader->open());
  return std::unique_ptr<BlockReader>(std::move(reader));
}

}  // namespace stoker::storage
