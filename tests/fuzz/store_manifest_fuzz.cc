// Whatever a manifest says stays inside its directory, in ascending layers, and is said again when
// it is written. The hash that the file gives itself is put in order first: no fuzzer guesses it.
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <string>

#include "core/base/check.h"
#include "storage/manifest.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace stoker;
  std::string text(reinterpret_cast<const char*>(data), size);
  const std::size_t last = text.rfind("  \"hash\": ");
  if (last != std::string::npos) {
    text.resize(last);
    text += "  \"hash\": \"" + storage::hex(storage::hash128(text)) + "\"\n}\n";
  }
  const auto manifest = storage::parse_manifest(text);
  if (!manifest.ok()) {
    CHECK(!manifest.error().message().empty());
    return 0;
  }
  int layer = -1;
  for (const storage::PackedLayer& packed : manifest->layers) {
    CHECK(packed.layer > layer && packed.num_experts > 0 && packed.num_blocks > 0 &&
          packed.expert_bytes > 0);
    layer = packed.layer;
  }
  const std::filesystem::path dir = "/store";
  for (const storage::ManifestFile& file : manifest->files) {
    CHECK((dir / file.name).lexically_normal().parent_path() == dir, "{}", file.name);
    CHECK(manifest->file(file.name) == &file, "{}", file.name);
    CHECK(file.bytes >= 0);
  }
  const auto again = storage::parse_manifest(storage::manifest_text(*manifest));
  CHECK(again.ok(), "{}", again.error().message());
  CHECK(again->layers == manifest->layers && again->files == manifest->files &&
        again->plan == manifest->plan);
  return 0;
}
