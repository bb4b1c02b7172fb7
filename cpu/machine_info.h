// What `stoker inspect --machine` prints. Anything that cannot be found out is left empty.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "cpu/isa.h"
#include "cpu/topology.h"

namespace stoker {

struct BlockDrive {
  std::string name;  // as in /dev
  std::string model;
  std::int64_t bytes = 0;
  bool rotational = false;
};

struct MachineInfo {
  std::string cpu_model;
  Topology topology;
  std::vector<Isa> isas;  // available, ascending
  Isa chosen = Isa::kScalar;
  std::int64_t memory_bytes = 0;
  std::int64_t memory_available_bytes = 0;  // to this process: control groups count
  std::vector<BlockDrive> drives;

  // `chosen`: the instruction set that would be used.
  static MachineInfo detect(Isa chosen = best_isa());
};

// Drives below `sys_block`, those without a medium and those that live in memory left out.
std::vector<BlockDrive> list_drives(const std::string& sys_block = "/sys/block");

}  // namespace stoker
