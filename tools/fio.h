// fio, the usual disk benchmark, as a reference for our own reads where it is installed.
#pragma once

#include <cstdint>
#include <filesystem>
#include <vector>

#include "core/base/error.h"

namespace stoker::tools {

struct FioJob {
  std::vector<std::filesystem::path> files;
  std::int64_t block_bytes = 0;
  int depth = 1;
  double seconds = 0.5;
};

struct FioResult {
  double bytes_per_second = 0.0;
  double cpu_seconds_per_gb = 0.0;
};

// Random direct reads through io_uring with registered buffers and files. kNotFound: fio is not
// installed.
Result<FioResult> run_fio(const FioJob& job);

}  // namespace stoker::tools
