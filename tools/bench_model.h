// stoker bench --suite decode and prefill: a model's speed beside what its memory and its drives
// give.
#pragma once

#include <cstdint>
#include <string>

#include "core/base/error.h"
#include "tools/model.h"

namespace stoker::tools {

struct ModelBenchFlags {
  ModelFlags model;
  bool decode = true;  // else prefill
  int tokens = 64;     // of a round
  int context = 0;     // cached tokens before those; random ones
  int rounds = 5;
  int warm_up = 1;           // rounds before those that count
  std::string force_routes;  // file; empty: the routers choose
  bool compare_prefetch = false;
  bool compare_sites = false;  // with GPUs: the scheduler beside fixed ways to share experts out
  std::string modelled_drive;  // bytes per second as a size; empty: the real ones
  bool json = false;
};

// `gpus`: instead of this machine's, for tests.
Result<int> bench_model(const ModelBenchFlags& flags, const Gpus* gpus = nullptr);

}  // namespace stoker::tools
