// bench --suite kernels --backend cuda: the linears and routed experts of DeepSeek-V3.2 on a
// device, beside what its memory could do in the same run. Written against Backend alone.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "core/base/error.h"
#include "core/interface/backend.h"

namespace stoker::tools {

struct DeviceTiming {
  std::string kernel;      // "q_b", "experts int4_g64", …
  std::int64_t rows = 0;   // of the step
  double seconds = 0.0;    // of one call, many in a row
  std::int64_t bytes = 0;  // of weights, each once
  double flops = 0.0;      // two per weight and row
};

struct DeviceReport {
  double copy_bytes_per_second = 0.0;  // read and written
  std::vector<DeviceTiming> timings;
};

// Medians over `rounds`. `prefill_rows`: 0 leaves those cases out.
struct DeviceSuiteOptions {
  int rounds = 5;
  std::int64_t prefill_rows = 4096;
};
// `fast_experts`: null, or the same device with that option, for which experts are measured once
// more.
Result<DeviceReport> bench_device_kernels(Backend& backend, Backend* fast_experts,
                                          const DeviceSuiteOptions& options);

nlohmann::ordered_json to_json(const DeviceReport& report);
// A line per case.
std::string to_text(const DeviceReport& report);

}  // namespace stoker::tools
