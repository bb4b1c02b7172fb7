#include "tests/support/packed_model.h"

#include <fstream>

#include "core/base/check.h"
#include "core/base/file.h"
#include "storage/write_file.h"

namespace stoker::test {

namespace fs = std::filesystem;

namespace {
constexpr std::size_t kMaxFile = 256 << 20;
}  // namespace

std::map<std::string, std::string> contents(const fs::path& dir) {
  std::map<std::string, std::string> files;
  for (const auto& entry : fs::directory_iterator(dir)) {
    files[entry.path().filename().string()] = *read_small_file(entry.path(), kMaxFile);
  }
  return files;
}

std::unique_ptr<storage::Checkpoint> open_checkpoint(const fs::path& dir,
                                                     const ModelConfig& config) {
  auto checkpoint = storage::Checkpoint::open(dir, config);
  CHECK(checkpoint.ok(), "{}", checkpoint.error().message());
  return std::move(checkpoint).value();
}

std::string open_message(const fs::path& dir, const ModelConfig& config,
                         std::span<const fs::path> expert_dirs) {
  const auto store = storage::Store::open(dir, config, expert_dirs);
  return store.ok() ? "" : store.error().message();
}

void flip(const fs::path& file, std::int64_t offset, unsigned char mask) {
  std::fstream stream(file, std::ios::in | std::ios::out | std::ios::binary);
  stream.seekg(offset);
  const int byte = stream.get();
  stream.seekp(offset);
  stream.put(static_cast<char>(static_cast<unsigned char>(byte) ^ mask));
  stream.flush();
  CHECK(stream.good(), "{} {}", file.string(), offset);
}

void edit_manifest(const fs::path& dir, const std::function<void(storage::Manifest&)>& edit) {
  const fs::path path = dir / storage::kManifestFile;
  auto manifest = storage::parse_manifest(*read_small_file(path, kMaxFile));
  CHECK(manifest.ok(), "{}", manifest.error().message());
  edit(*manifest);
  const Status written = storage::write_text_file(path, storage::manifest_text(*manifest));
  CHECK(written.ok(), "{}", written.error().message());
}

PackedModel::PackedModel(const TinyModelOptions& model, const storage::PackOptions& options)
    : model_(model) {
  const Status packed = storage::pack(model_.dir(), *checkpoint(), dir(), options);
  CHECK(packed.ok(), "{}", packed.error().message());
}

std::unique_ptr<storage::Store> PackedModel::store(std::span<const fs::path> expert_dirs) const {
  auto store = storage::Store::open(dir(), model_.config(), expert_dirs);
  CHECK(store.ok(), "{}", store.error().message());
  return std::move(store).value();
}

}  // namespace stoker::test
