// Memory spread over several NUMA nodes.
#pragma once

#include <cstddef>
#include <memory>
#include <span>

struct hwloc_topology;

namespace stoker::storage {

// Experts are read by cores of every node, and who reads from all memories at once has the
// bandwidth of all. Thread-safe once made.
class NodeInterleave {
 public:
  NodeInterleave();  // looks at the machine

  // Has the pages of `memory`, none of which is present yet, come from all nodes in turn. Nothing
  // on one node; what the system refuses is left to it.
  void apply(std::span<std::byte> memory) const;

 private:
  struct Destroy {
    void operator()(hwloc_topology* topology) const;
  };
  std::unique_ptr<hwloc_topology, Destroy> topology_;  // null: one node
};

}  // namespace stoker::storage
