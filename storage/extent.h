// Where the bytes of an expert's block lie in files: what a reader needs to know of a source, and
// all it needs to know.
#pragma once

#include <cstdint>
#include <filesystem>
#include <span>
#include <vector>

#include "core/base/ids.h"

namespace stoker::storage {

// A stretch of a file, read to the start of the block's place in its slot + dst_offset. `offset`,
// `bytes` and `dst_offset` are multiples of 4096, as direct I/O wants them. `bytes` may reach past
// the end of the file: a read that ends where the file ends is complete.
struct Extent {
  int file = 0;  // index into ExtentSource::extent_files()
  std::int64_t offset = 0;
  std::int64_t bytes = 0;
  std::int64_t dst_offset = 0;
};

inline constexpr std::int64_t kExtentAlign = 4096;
inline constexpr int kMaxExtents = 4;  // of one block

struct ExtentFile {
  std::filesystem::path path;
  std::int64_t size = 0;  // when the source was opened; a file that is shorter by now is an error
};

// Thread-safe and immutable; outlives the readers opened on it.
class ExtentSource {
 public:
  virtual ~ExtentSource() = default;

  // Every file that extents() names. Copies of the same experts (mirrors) are further files.
  virtual const std::vector<ExtentFile>& extent_files() const = 0;

  // Writes the extents of a block to `out`, which takes kMaxExtents, and returns how many there
  // are. They do not overlap in the slot. 0: there is no copy number `replica`; copies are numbered
  // from 0 without gaps.
  virtual int extents(ExpertId id, int block, int replica, std::span<Extent> out) const = 0;
};

}  // namespace stoker::storage
