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

// The header of a file and where it says that the tensors lie.
struct SafetensorsHead {
  struct Place {
    std::int64_t offset = 0, bytes = 0;  // in the file
  };
  std::string bytes;               // length, JSON, padding: the data section follows
  std::vector<Place> places;       // as declared
  std::vector<std::size_t> order;  // of the tensors in the file: indices of `places`
  std::int64_t file_bytes = 0;
};
// Tensors with wider elements come first, otherwise in their order: so each begins at a multiple of
// its element size, as common readers require. They are contiguous.
SafetensorsHead safetensors_head(const std::vector<TensorDecl>& tensors,
                                 const SafetensorsOptions& options = {});

// One file, laid out by safetensors_head(). Not thread-safe.
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
  SafetensorsWriter(AtomicFile file, std::vector<TensorDecl> tensors)
      : file_(std::move(file)), tensors_(std::move(tensors)) {}

  AtomicFile file_;
  std::vector<TensorDecl> tensors_;
  std::vector<SafetensorsHead::Place> places_;
  std::vector<std::int64_t> done_;  // bytes written of each
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
