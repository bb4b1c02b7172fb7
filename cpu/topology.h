// Cores, caches and memory of this machine, and where to pin threads. Found through hwloc; what
// cannot be found stays zero or empty.
#pragma once

#include <cstdint>
#include <vector>

namespace stoker {

struct CacheInfo {
  int level = 0;           // 1: data
  std::int64_t bytes = 0;  // of one of them
  int count = 0;
};

struct NumaNode {
  int os_index = 0;
  std::int64_t memory_bytes = 0;
  std::vector<int> cpus;  // logical CPUs that are near
};

// The part of the machine that this process may use.
struct Topology {
  int num_packages = 0;
  int num_cores = 0;
  // Logical CPUs in the order to use them: one per physical core first, then their siblings.
  std::vector<int> cpus;
  std::vector<CacheInfo> caches;
  std::vector<NumaNode> numa_nodes;

  static Topology detect();

  // CPUs to pin `num_threads` threads to; 0: one per physical core.
  std::vector<int> pin_order(int num_threads = 0) const;
};

}  // namespace stoker
