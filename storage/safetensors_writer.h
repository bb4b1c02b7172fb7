// Writes safetensors: declare every tensor, then bring their bytes in any order, a piece at a time.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "core/base/error.h"
#include "storage/safetensors.h"
#include "storage/write_file.h"

namespace stoker::storage {

struct TensorDecl {
  std::string name;
  StoredType type = StoredType::kU8;
  std::vector<std::int64_t> shape;

  std::int64_t bytes() const;
};

struct SafetensorsOptions {
  std::int64_t data_align = 64;  // of the data section; the header is padded with spaces
  std::map<std::string, std::string> metadata = {{"format", "pt"}};
};

// One file. Tensors with wider elements come first, so that each begins at a multiple of its
// element size, as common readers require; in file order they are contiguous. Not thread-safe.
class SafetensorsWriter {
 public:
  static Result<SafetensorsWriter> create(const std::filesystem::path& path,
                                          std::vector<TensorDecl> tensors,
                                          const SafetensorsOptions& options = {});

  // The next bytes of tensor `index` (as declared).
  Status append(std::size_t index, std::span<const std::byte> bytes);
  // The file appears under its name. Every declared byte must have been appended.
  Status finish();

 private:
  struct Place {
    std::int64_t offset, bytes, done;
  };
  SafetensorsWriter(AtomicFile file, std::vector<TensorDecl> tensors)
      : file_(std::move(file)), tensors_(std::move(tensors)) {}

  AtomicFile file_;
  std::vector<TensorDecl> tensors_;
  std::vector<Place> places_;  // as declared
};

// A checkpoint directory: model.safetensors, or with more than one shard
// model-00001-of-000002.safetensors ... and their index, which is written last.
class CheckpointWriter {
 public:
  // Cuts `tensors`, in their order, into `num_shards` (at most one per tensor) of about equal
  // bytes.
  static Result<CheckpointWriter> create(const std::filesystem::path& dir,
                                         std::vector<TensorDecl> tensors, int num_shards = 1,
                                         const SafetensorsOptions& options = {});

  // As SafetensorsWriter.
  Status append(std::size_t index, std::span<const std::byte> bytes);
  Status finish();

 private:
  struct Home {
    std::size_t shard, index;
  };
  explicit CheckpointWriter(std::filesystem::path dir) : dir_(std::move(dir)) {}

  std::filesystem::path dir_;
  std::vector<SafetensorsWriter> shards_;
  std::vector<Home> homes_;  // of each tensor
  std::string index_json_;   // empty for a single file
};

}  // namespace stoker::storage
