// A tiny model and the store that it was packed into, and what tests do to stores.
#pragma once

#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <span>
#include <string>

#include "storage/checkpoint.h"
#include "storage/manifest.h"
#include "storage/packer.h"
#include "storage/store.h"
#include "tests/support/temp_dir.h"
#include "tests/support/tiny_model.h"

namespace stoker::test {

// The content of every file of a directory, by name.
std::map<std::string, std::string> contents(const std::filesystem::path& dir);

std::unique_ptr<storage::Checkpoint> open_checkpoint(const std::filesystem::path& dir,
                                                     const ModelConfig& config);

// The error's message, or "" if the store opens.
std::string open_message(const std::filesystem::path& dir, const ModelConfig& config,
                         std::span<const std::filesystem::path> expert_dirs = {});

// Flips `mask` in one byte.
void flip(const std::filesystem::path& file, std::int64_t offset, unsigned char mask = 1);

// Writes the manifest anew after `edit`, its own hash in order.
void edit_manifest(const std::filesystem::path& dir,
                   const std::function<void(storage::Manifest&)>& edit);

class PackedModel {
 public:
  explicit PackedModel(const TinyModelOptions& model = {},
                       const storage::PackOptions& options = {});
  const std::filesystem::path& source_dir() const { return model_.dir(); }
  std::filesystem::path dir() const { return temp_.path() / "store"; }
  std::filesystem::path dir(const char* name) const { return temp_.path() / name; }
  const ModelConfig& config() const { return model_.config(); }
  std::unique_ptr<storage::Checkpoint> checkpoint() const {
    return open_checkpoint(model_.dir(), model_.config());
  }
  std::unique_ptr<storage::Store> store(
      std::span<const std::filesystem::path> expert_dirs = {}) const;

 private:
  TinyModel model_;
  TempDir temp_;
};

}  // namespace stoker::test
