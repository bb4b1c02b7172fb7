// Files that appear complete or not at all: written under another name, synced, renamed.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string_view>
#include <utility>

#include "core/base/descriptor.h"
#include "core/base/error.h"

namespace stoker::storage {

// A file in the making. Destroyed before commit() it leaves nothing behind; killed, a ".partial".
class AtomicFile {
 public:
  static Result<AtomicFile> create(const std::filesystem::path& path);

  AtomicFile(AtomicFile&& other) noexcept = default;
  AtomicFile& operator=(AtomicFile&&) = delete;
  ~AtomicFile();

  const std::filesystem::path& path() const { return path_; }

  // Writes at byte `offset`, in any order. A full disk is an error that names the file.
  Status write(std::int64_t offset, std::span<const std::byte> bytes);
  // Makes the file durable under its name, replacing what was there.
  Status commit();

 private:
  AtomicFile(std::filesystem::path path, std::filesystem::path partial, Descriptor file)
      : path_(std::move(path)), partial_(std::move(partial)), file_(std::move(file)) {}

  std::filesystem::path path_, partial_;
  Descriptor file_;  // open until commit()
};

// A file that was made or renamed is durable once its directory is.
Status sync_parent_directory(const std::filesystem::path& file);

Status write_text_file(const std::filesystem::path& path, std::string_view text);

}  // namespace stoker::storage
