// TensorFiles: the named tensors of a set of safetensors files, read with pread into memory of
// their own (never mapped: a drive that goes away is an error, not a signal). Knows no config.
#pragma once

#include <filesystem>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/base/error.h"
#include "core/interface/weight_source.h"
#include "storage/read_file.h"
#include "storage/safetensors.h"

namespace stoker::storage {

// Where a tensor's bytes lie.
struct StoredTensor {
  int file = 0;  // index into files()
  StoredType type = StoredType::kU8;
  std::int64_t rows = 1, cols = 0;  // a vector: rows 1
  std::int64_t offset = 0, bytes = 0;
  int rank = 0;
  bool ignored = false;  // no part of the model: said in the notices of who opened the files
  // XXH3-64 of its bytes, where the file gives one; held against what is read.
  std::optional<std::uint64_t> checksum = std::nullopt;
};

// The format of a weight that is stored as `type`: F32, F16, BF16 or F8_E4M3.
QuantFormat quant_format_of(StoredType type);

// The header of an open file, checked against the file's size. Errors name the file.
Result<SafetensorsHeader> read_safetensors_header(const ReadFile& file);

// Built by one thread, then immutable and thread-safe.
class TensorFiles {
 public:
  // Takes a file and the tensors of its header. A name that another file holds is an error.
  Status add(ReadFile file);
  // Says that the tensor is no part of the model: has(), names() and read() leave it out.
  void ignore(std::string_view name);
  // Forgets a tensor that is none of the model's.
  void remove(std::string_view name);
  void set_checksum(std::string_view name, std::uint64_t checksum);

  // The stored tensor `name`, ignored or not, or null. Scales are tensors of their own.
  const StoredTensor* find(std::string_view name) const;
  bool has(std::string_view name) const;
  std::vector<std::string> names() const;  // sorted
  const std::map<std::string, StoredTensor, std::less<>>& all() const { return tensors_; }
  const std::vector<ReadFile>& files() const { return files_; }
  const std::filesystem::path& path_of(const StoredTensor& tensor) const {
    return files_[static_cast<std::size_t>(tensor.file)].path();
  }

  // As WeightSource::read().
  Result<HostWeight> read(std::string_view name, std::int64_t rows, std::int64_t cols) const;

  // kCorrupt if a value is not finite. `bytes` begin at element `first` of the tensor.
  Status check_finite(std::string_view name, const StoredTensor& tensor, std::int64_t first,
                      std::span<const std::byte> bytes) const;

  // Bytes that load() writes for a weight: payload and scales, each aligned to 64.
  std::int64_t loaded_bytes(std::string_view name, const StoredTensor& tensor) const;
  // Reads payload and scales of `name` to `dst` and checks that checksums hold and every
  // value is finite. `dst` is
  // aligned to 64 and takes loaded_bytes().
  Result<QuantView> load(std::string_view name, const StoredTensor& tensor, std::byte* dst) const;

 private:
  std::vector<ReadFile> files_;
  std::map<std::string, StoredTensor, std::less<>> tensors_;
};

}  // namespace stoker::storage
