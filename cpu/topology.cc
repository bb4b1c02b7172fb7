#include "cpu/topology.h"

#include <hwloc.h>

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <thread>
#include <type_traits>

namespace stoker {
namespace {

struct DestroyTopology {
  void operator()(hwloc_topology_t topology) const { hwloc_topology_destroy(topology); }
};
using TopologyPtr = std::unique_ptr<std::remove_pointer_t<hwloc_topology_t>, DestroyTopology>;

TopologyPtr load() {
  // A library does not print: without /sys (a bare chroot) hwloc would, on standard error.
  setenv("HWLOC_HIDE_ERRORS", "2", /*overwrite=*/0);
  hwloc_topology_t raw = nullptr;
  if (hwloc_topology_init(&raw) != 0) return nullptr;
  TopologyPtr topology(raw);
  if (hwloc_topology_load(raw) != 0) return nullptr;
  return topology;
}

std::vector<int> members(hwloc_const_bitmap_t set) {
  std::vector<int> cpus;
  if (set == nullptr) return cpus;
  for (int cpu = hwloc_bitmap_first(set); cpu >= 0; cpu = hwloc_bitmap_next(set, cpu)) {
    cpus.push_back(cpu);
  }
  return cpus;
}

std::vector<hwloc_obj_t> objects(hwloc_topology_t topology, hwloc_obj_type_t type) {
  std::vector<hwloc_obj_t> found;
  for (hwloc_obj_t at = nullptr;
       (at = hwloc_get_next_obj_by_type(topology, type, at)) != nullptr;) {
    found.push_back(at);
  }
  return found;
}

// First the first CPU of every core, then the second of those that have one, and so on.
std::vector<int> cores_first(const std::vector<hwloc_obj_t>& cores) {
  std::vector<int> order;
  std::vector<std::vector<int>> siblings;
  std::size_t most = 0;
  for (const hwloc_obj_t core : cores) {
    siblings.push_back(members(core->cpuset));
    most = std::max(most, siblings.back().size());
  }
  for (std::size_t i = 0; i < most; ++i) {
    for (const std::vector<int>& of_core : siblings) {
      if (i < of_core.size()) order.push_back(of_core[i]);
    }
  }
  return order;
}

// Without hwloc's help: as many CPUs as the system admits to.
Topology fallback() {
  Topology topology;
  topology.num_cores = std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
  return topology;
}

}  // namespace

Topology Topology::detect() {
  const TopologyPtr machine = load();
  if (machine == nullptr) return fallback();
  Topology topology;
  const std::vector<hwloc_obj_t> cores = objects(machine.get(), HWLOC_OBJ_CORE);
  topology.num_packages = std::max(0, hwloc_get_nbobjs_by_type(machine.get(), HWLOC_OBJ_PACKAGE));
  topology.num_cores = static_cast<int>(cores.size());
  topology.cpus = cores_first(cores);
  if (topology.cpus.empty()) {
    topology.cpus = members(hwloc_topology_get_allowed_cpuset(machine.get()));
    topology.num_cores = std::max(1, static_cast<int>(topology.cpus.size()));
  }
  constexpr hwloc_obj_type_t kCaches[] = {HWLOC_OBJ_L1CACHE, HWLOC_OBJ_L2CACHE, HWLOC_OBJ_L3CACHE};
  for (int level = 1; level <= 3; ++level) {
    const std::vector<hwloc_obj_t> caches = objects(machine.get(), kCaches[level - 1]);
    if (caches.empty()) continue;
    topology.caches.push_back({.level = level,
                               .bytes = static_cast<std::int64_t>(caches[0]->attr->cache.size),
                               .count = static_cast<int>(caches.size())});
  }
  for (const hwloc_obj_t node : objects(machine.get(), HWLOC_OBJ_NUMANODE)) {
    topology.numa_nodes.push_back(
        {.os_index = static_cast<int>(node->os_index),
         .memory_bytes = static_cast<std::int64_t>(node->attr->numanode.local_memory),
         .cpus = members(node->cpuset)});
  }
  return topology;
}

std::vector<int> Topology::pin_order(int num_threads) const {
  const std::size_t count = num_threads > 0 ? num_threads : num_cores;
  std::vector<int> order = cpus;
  if (order.size() > count) order.resize(count);
  return order;
}

}  // namespace stoker
