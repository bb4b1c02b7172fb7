#include "tests/support/extent_files.h"

#include <algorithm>
#include <cstring>
#include <fstream>
#include <random>

#include "core/base/check.h"

namespace stoker::test {

using storage::Extent;

ExtentFiles::ExtentFiles(const ExtentFilesOptions& options) : options_(options) {
  CHECK(options.block_bytes % (options.stretches * storage::kExtentAlign) == 0);
  content_.resize(static_cast<std::size_t>(num_blocks() * options.block_bytes));
  std::mt19937_64 random(options.seed);
  for (std::size_t i = 0; i < content_.size(); i += 8) {
    const std::uint64_t word = random();
    std::memcpy(&content_[i], &word, 8);
  }
  const std::int64_t size = std::ssize(content_) - options.cut;
  for (const std::filesystem::path& dir : options.dirs) {
    const std::filesystem::path path = dir / "experts.bin";
    std::ofstream file(path, std::ios::binary);
    file.write(reinterpret_cast<const char*>(content_.data()), size);
    file.close();
    CHECK(file.good(), "{}", path.string());
    files_.push_back({path, size});
  }
}

int ExtentFiles::extents(ExpertId id, int block, int replica, std::span<Extent> out) const {
  if (replica >= static_cast<int>(files_.size())) return 0;
  const std::int64_t begin = (id.expert * options_.num_blocks + block) * options_.block_bytes;
  const std::int64_t bytes = options_.block_bytes / options_.stretches;
  for (int i = 0; i < options_.stretches; ++i) {
    const std::int64_t dst = (options_.stretches - 1 - i) * bytes;
    out[static_cast<std::size_t>(i)] = {replica, begin + i * bytes, bytes, dst};
  }
  return options_.stretches;
}

bool ExtentFiles::holds(int i, std::span<const std::byte> bytes) const {
  std::vector<Extent> extents(storage::kMaxExtents);
  const int count = this->extents(id_of(i), block_of(i), 0, extents);
  for (const Extent& extent : std::span(extents).first(static_cast<std::size_t>(count))) {
    const std::int64_t there = std::min(extent.bytes, files_[0].size - extent.offset);
    if (std::memcmp(bytes.data() + extent.dst_offset, content_.data() + extent.offset,
                    static_cast<std::size_t>(there)) != 0) {
      return false;
    }
  }
  return true;
}

}  // namespace stoker::test
