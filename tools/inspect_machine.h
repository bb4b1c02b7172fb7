// What this machine has that stoker uses.
#pragma once

#include <string>
#include <vector>

#include "core/text/json_text.h"
#include "cpu/machine_info.h"
#include "gpu/factory.h"

namespace stoker::tools {

struct MachineReport {
  MachineInfo cpu;
  std::vector<GpuInfo> gpus;
  std::string cuda;  // one sentence on CUDA support
};

MachineReport inspect_machine();
JsonValue machine_to_json(const MachineReport& report);
std::string machine_to_text(const MachineReport& report);

}  // namespace stoker::tools
