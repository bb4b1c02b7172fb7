// write_store(): brings a store into being under OUT.partial, and publishes it as OUT when it is
// complete and verified.
//
// The work is cut into units: a dense tensor, an expert. A journal in OUT.partial lists the units
// that are durable, with their checksums; killed at any moment, the same command goes on where the
// journal ends and arrives at the same bytes.
#pragma once

#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "core/base/error.h"
#include "core/base/ids.h"
#include "core/base/progress.h"
#include "core/model/model_config.h"
#include "storage/aligned_bytes.h"
#include "storage/manifest.h"
#include "storage/safetensors_writer.h"

namespace stoker::storage {

// What a store will consist of.
struct StorePlan {
  std::string source_model;
  Hash128 source;         // of everything that decides the bytes and does not stand here
  std::string options;    // what was asked for, in words: "int4_g64 experts in 2 files"
  Hash128 source_config;  // of the model's config.json
  std::vector<std::pair<std::string, std::string>> copies;  // small files, config.json too: content
  std::vector<TensorDecl> dense;
  std::vector<QuantSpec> expert_specs;  // of every layer of the config; used for layers in `layers`
  std::vector<int> layers;              // whose experts are packed, ascending
  int num_files = 1;                    // expert files; at most one per expert of a layer
};

// Memory that a thread keeps from unit to unit.
class ScratchBytes {
 public:
  // At least `bytes`, aligned to a page; the content is lost.
  Result<std::byte*> get(std::int64_t bytes);

 private:
  AlignedBytes memory_;
  std::int64_t size_ = 0;
};

// Brings the bytes of a store. Called from several threads at once; the same arguments must bring
// the same bytes.
class StoreContent {
 public:
  virtual ~StoreContent() = default;
  // Expert `id` in block form; `dst` takes all its bytes and is aligned to a page.
  virtual Status expert(ExpertId id, std::span<std::byte> dst, ScratchBytes& scratch) = 0;
  // Bytes from `offset` on of tensor `index` of StorePlan::dense.
  virtual Status dense(std::size_t index, std::int64_t offset, std::span<std::byte> dst,
                       ScratchBytes& scratch) = 0;
  // What expert() takes from `scratch`.
  virtual std::int64_t scratch_bytes() const = 0;
};

struct StoreWriteOptions {
  bool verify = true;  // read everything back before publishing
  ProgressFn writing;
  ProgressFn verifying;
};

// OUT must not exist; OUT.partial may, if it is the same plan unfinished. Uses less than 1.5 GiB of
// memory, whatever the model. Errors say what is left and how to go on.
Status write_store(const std::filesystem::path& out, const ModelConfig& config,
                   const StorePlan& plan, StoreContent& content, const StoreWriteOptions& options);

}  // namespace stoker::storage
