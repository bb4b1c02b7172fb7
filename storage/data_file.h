// The form of a store's data files (dense.safetensors, experts-000.safetensors, ...): safetensors
// whose last tensor holds the checksums of all others.
//
//   | header, padded with spaces to 4 KiB | tensors, contiguous | table: XXH3-64 ..., zeros to 4
//   KiB |
//
// A tensor is covered by one or more checksums, each over a stretch of it: a packed expert by one
// per block, a dense tensor by one. The table lists them in file order, little endian. The header's
// and the table's own hashes stand in the manifest, so that every byte is covered.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "core/base/ids.h"
#include "storage/safetensors_writer.h"

namespace stoker::storage {

inline constexpr const char* kDenseFile = "dense.safetensors";
inline constexpr const char* kChecksumTensor = "block_checksums";
inline constexpr std::int64_t kChecksumBytes = 8;

// "experts-007.safetensors".
std::string expert_file_name(int index);
// "model.layers.7.mlp.experts.12": the name of a packed expert.
std::string packed_expert_name(ExpertId id);
// And back; empty for any other name.
std::optional<ExpertId> packed_expert_named(std::string_view name);

// Where everything lies in a data file that is to be written.
struct DataFileLayout {
  struct Tensor {
    std::int64_t offset = 0, bytes = 0;
    std::int64_t first_checksum = 0;  // index into the table
    int num_checksums = 0;
  };
  std::string head;
  std::vector<Tensor> tensors;  // as declared
  std::int64_t num_checksums = 0;
  std::int64_t table_offset = 0, table_bytes = 0;
  std::int64_t file_bytes = 0;  // a multiple of 4 KiB

  // `num_checksums` of each tensor.
  static DataFileLayout make(std::vector<TensorDecl> tensors,
                             const std::vector<int>& num_checksums);
};

// The table's bytes: `checksums`, padded with zeros to `table_bytes`; and back.
std::string checksum_table(const std::vector<std::uint64_t>& checksums, std::int64_t table_bytes);
std::vector<std::uint64_t> checksums_of(std::string_view table, std::int64_t count);

}  // namespace stoker::storage
