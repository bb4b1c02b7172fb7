#include "tools/drive_probe.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <new>
#include <string>
#include <utility>

namespace stoker::tools {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::int64_t kMemoryBytes = std::int64_t{256} << 20;
constexpr std::align_val_t kHugePage{2 << 20};

}  // namespace

void DriveProbe::FreeBytes::operator()(std::byte* bytes) const {
  ::operator delete(bytes, kHugePage);
}

DriveProbe::DriveProbe(const ExpertSource& source, ExpertReader& reader, std::vector<int> layers,
                       int num_experts)
    : source_(source), reader_(reader), layers_(std::move(layers)), num_experts_(num_experts) {
  CHECK(!layers_.empty() && num_experts_ > 0, "nothing to read");
  for (const int layer : layers_) {
    for (int block = 0; block < source_.num_blocks(layer); ++block)
      block_bytes_ = std::max(block_bytes_, source_.block_bytes(layer, block));
  }
  num_places_ = std::max<std::int64_t>(kMaxDepth, kMemoryBytes / block_bytes_);
  const auto bytes = static_cast<std::size_t>(block_bytes_ * num_places_);
  memory_.reset(static_cast<std::byte*>(::operator new(bytes, kHugePage)));
  // As slots are: on huge pages and present.
  ::madvise(memory_.get(), bytes, MADV_HUGEPAGE);
  std::memset(memory_.get(), 0xff, bytes);
  // Registration is a matter of speed: refused, the reads go on without.
  (void)reader_.register_memory({memory_.get(), bytes});
}

BlockRead DriveProbe::random_read(std::uint32_t tag) {
  const int layer = layers_[random_() % layers_.size()];
  BlockRead read;
  read.tag = tag;
  read.id = {layer, static_cast<int>(random_() % static_cast<std::uint64_t>(num_experts_))};
  read.block = static_cast<int>(random_() % static_cast<std::uint64_t>(source_.num_blocks(layer)));
  read.dst = memory_.get() + next_place_ * block_bytes_;
  next_place_ = (next_place_ + 1) % num_places_;
  return read;
}

Result<double> DriveProbe::measure(double seconds, int depth) {
  CHECK(depth > 0 && depth <= kMaxDepth, "{} blocks at a time", depth);
  auto under_way = static_cast<std::uint32_t>(depth);
  std::array<BlockRead, kMaxDepth> reads;
  for (std::uint32_t tag = 0; tag < under_way; ++tag) reads[tag] = random_read(tag);
  const Clock::time_point start = Clock::now();
  const auto end = start + std::chrono::duration<double>(seconds);
  const std::int64_t before = reader_.load().bytes_read;
  reader_.submit(std::span(reads).first(under_way));
  Clock::time_point last = start;
  Status status;
  std::array<BlockDone, kMaxDepth> done;
  while (under_way > 0) {
    reader_.wait(std::chrono::milliseconds(100));
    const std::size_t count = reader_.reap(done);
    if (count > 0) last = Clock::now();
    for (std::size_t i = 0; i < count; ++i) {
      if (done[i].outcome == ReadOutcome::kFailed && status.ok()) status = done[i].status;
      if (last < end && status.ok()) {
        const BlockRead read = random_read(done[i].tag);
        reader_.submit({&read, 1});
      } else {
        --under_way;
      }
    }
  }
  RETURN_IF_ERROR(std::move(status), "measuring the drive");
  const auto bytes = static_cast<double>(reader_.load().bytes_read - before);
  return bytes / std::chrono::duration<double>(last - start).count();
}

double thread_cpu_seconds(const char* name) {
  double ticks = 0.0;
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator("/proc/self/task", error)) {
    std::ifstream stat(entry.path() / "stat");
    std::string text;
    std::getline(stat, text);
    const std::size_t open = text.find('('), close = text.rfind(')');
    if (open == std::string::npos || close == std::string::npos) continue;
    if (text.substr(open + 1, close - open - 1) != name) continue;
    // After the name: state, then ten fields, then user and system time (proc(5)).
    std::size_t at = close + 1;
    for (int field = 0; field < 11; ++field) at = text.find(' ', at + 1);
    std::size_t used = 0;
    const double user = std::stod(text.substr(at + 1), &used);
    ticks += user + std::stod(text.substr(at + 1 + used));
  }
  return ticks / static_cast<double>(::sysconf(_SC_CLK_TCK));
}

}  // namespace stoker::tools
