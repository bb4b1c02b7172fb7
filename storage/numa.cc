#include "storage/numa.h"

#include <hwloc.h>

#include <cstdlib>

namespace stoker::storage {

void NodeInterleave::Destroy::operator()(hwloc_topology* topology) const {
  hwloc_topology_destroy(topology);
}

NodeInterleave::NodeInterleave() {
  // A library does not print: without /sys (a bare chroot) hwloc would, on standard error.
  setenv("HWLOC_HIDE_ERRORS", "2", /*overwrite=*/0);
  hwloc_topology_t raw = nullptr;
  if (hwloc_topology_init(&raw) != 0) return;
  topology_.reset(raw);
  if (hwloc_topology_load(raw) != 0 || hwloc_get_nbobjs_by_type(raw, HWLOC_OBJ_NUMANODE) < 2) {
    topology_ = nullptr;
  }
}

void NodeInterleave::apply(std::span<std::byte> memory) const {
  if (topology_ == nullptr) return;
  hwloc_set_area_membind(topology_.get(), memory.data(), memory.size(),
                         hwloc_topology_get_allowed_nodeset(topology_.get()),
                         HWLOC_MEMBIND_INTERLEAVE, HWLOC_MEMBIND_BYNODESET);
}

}  // namespace stoker::storage
