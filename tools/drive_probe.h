// What a model's drives give at best, measured beside a run: random expert blocks, read the way the
// engine reads them, nothing computed. Every probe reads blocks of its own choosing: where a cache
// lies below the drive, two that read the same would find there what the other has read. And they
// land all over a stretch of memory that no processor's cache holds, as they do in slots: a drive
// may be half as fast again into a few buffers that stay in the last-level cache.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <random>
#include <vector>

#include "core/base/error.h"
#include "core/interface/expert_source.h"

namespace stoker::tools {

class DriveProbe {
 public:
  // Reads experts of `layers`, of `num_experts` each. `source` and `reader` outlive the probe; the
  // reader is the probe's alone.
  DriveProbe(const ExpertSource& source, ExpertReader& reader, std::vector<int> layers,
             int num_experts);

  static constexpr int kMaxDepth = 64;

  // Bytes per second over `seconds`, with `depth` blocks wished for at any time.
  Result<double> measure(double seconds, int depth = kMaxDepth);

 private:
  struct FreeBytes {
    void operator()(std::byte* bytes) const;
  };

  BlockRead random_read(std::uint32_t tag);

  const ExpertSource& source_;
  ExpertReader& reader_;
  std::vector<int> layers_;
  int num_experts_;
  std::mt19937_64 random_{std::random_device{}()};
  std::int64_t block_bytes_ = 0;  // of the largest block
  std::int64_t num_places_ = 0, next_place_ = 0;
  std::unique_ptr<std::byte, FreeBytes> memory_;
};

// CPU seconds that the threads of this process whose name is `name` have used.
double thread_cpu_seconds(const char* name);

}  // namespace stoker::tools
