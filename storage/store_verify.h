// Reads every byte of a store and holds it against the hashes that cover it.
#pragma once

#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <vector>

#include "core/base/error.h"
#include "core/base/progress.h"
#include "core/model/model_config.h"
#include "storage/manifest.h"

namespace stoker::storage {

// A stretch of a file that is not what it must be; the whole file where `bytes` is 0.
struct BadStretch {
  std::filesystem::path file;
  std::int64_t offset = 0, bytes = 0;
  std::string problem;  // "expert 3 of layer 7, block 2: has checksum ..., expected ..."
};

struct VerifyReport {
  std::vector<BadStretch> bad;                 // by file and offset
  std::vector<std::filesystem::path> unknown;  // files of the directory that are no part of it
  int num_files = 0;                           // copies of mirrored files included
  std::int64_t num_checksums = 0;
  std::int64_t bytes = 0;  // read
};

// Verifies the store in `dir`, with its expert files in `expert_dirs` or, if there are none, in
// `dir` itself; every copy of a mirrored file. What is bad stands in the report; an error means
// that nothing could be verified.
Result<VerifyReport> verify_store(const std::filesystem::path& dir,
                                  std::span<const std::filesystem::path> expert_dirs,
                                  const ProgressFn& progress = {});

// The same for files whose manifest is at hand and not yet written. `config` null: not known, and
// how experts are cut into blocks neither.
Result<VerifyReport> verify_files(const std::filesystem::path& dir,
                                  std::span<const std::filesystem::path> expert_dirs,
                                  const Manifest& manifest, const ModelConfig* config,
                                  const ProgressFn& progress = {});

}  // namespace stoker::storage
