// What a model's drives give at best, measured beside a run: random expert blocks, read the way the
// engine reads them, nothing computed.
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
             int num_experts, std::uint64_t seed = 1);

  static constexpr int kMaxDepth = 64;

  // Bytes per second over `seconds`, with `depth` blocks wished for at any time.
  Result<double> measure(double seconds, int depth = kMaxDepth);

 private:
  struct FreeBytes {
    void operator()(std::byte* bytes) const;
  };

  BlockRead random_read(std::uint32_t place);

  const ExpertSource& source_;
  ExpertReader& reader_;
  std::vector<int> layers_;
  int num_experts_;
  std::mt19937_64 random_;
  std::int64_t block_bytes_ = 0;  // of the largest block
  std::unique_ptr<std::byte, FreeBytes> memory_;
};

// CPU seconds that the threads of this process whose name is `name` have used.
double thread_cpu_seconds(const char* name);

}  // namespace stoker::tools
