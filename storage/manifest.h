// manifest.json: what a store consists of. Written last; a directory without it is no store.
//
//   {
//     "format": "stoker-store",
//     "version": 1,
//     "source": {"model": "DeepSeek-V3.2", "config": "<hash>", "plan": "<hash>"},
//     "layers": [
//       {"layer": 3, "experts": 256, "format": "int4_g64", "expert_bytes": 23396352, "blocks": 24},
//       ...
//     ],
//     "files": [
//       {"name": "config.json", "bytes": 1712, "hash": "<hash>"},
//       {"name": "dense.safetensors", "bytes": 17..., "head": "<hash>", "table": "<hash>"},
//       ...
//     ],
//     "hash": "<hash>"
//   }
//
// A <hash> is XXH3-128 in 32 hexadecimal digits: of a whole file, or of the header and of the
// checksum table of a data file (data_file.h). The last one is of the text before its own line.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "core/base/error.h"
#include "core/tensor/quant_view.h"
#include "storage/checksum.h"

namespace stoker::storage {

inline constexpr const char* kManifestFile = "manifest.json";
inline constexpr std::size_t kMaxManifestBytes = 64 << 20;
inline constexpr int kStoreVersion = 1;

// A layer whose routed experts are packed.
struct PackedLayer {
  int layer = 0;
  int num_experts = 0;
  QuantSpec spec;
  std::int64_t expert_bytes = 0;
  int num_blocks = 0;
  bool operator==(const PackedLayer&) const = default;
};

struct ManifestFile {
  std::string name;  // a plain name, without a way out of the directory
  std::int64_t bytes = 0;
  bool is_data = false;  // a data file: hashes of its header and of its table
  Hash128 head{}, table{};
  Hash128 hash{};  // any other file: of all its bytes
  bool operator==(const ManifestFile&) const = default;
};

struct Manifest {
  std::string source_model;         // name of the directory that was packed
  Hash128 source_config;            // of its config.json
  Hash128 plan;                     // of everything that decided what was written
  std::vector<PackedLayer> layers;  // ascending
  std::vector<ManifestFile> files;  // all but the manifest itself

  const ManifestFile* file(std::string_view name) const;
};

// Trusts nothing. Errors say what to do; they do not name the file.
Result<Manifest> parse_manifest(std::string_view text);
std::string manifest_text(const Manifest& manifest);

}  // namespace stoker::storage
