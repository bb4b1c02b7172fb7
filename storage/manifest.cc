#include "storage/manifest.h"

#include <fmt/format.h>

#include <algorithm>
#include <initializer_list>
#include <nlohmann/json.hpp>
#include <set>
#include <utility>

#include "core/model/json_fields.h"
#include "storage/data_file.h"
#include "storage/safetensors.h"

namespace stoker::storage {
namespace {

constexpr std::string_view kFormat = "stoker-store";
constexpr std::int64_t kMaxBytes = std::int64_t{1} << 50;
constexpr std::int64_t kMaxCount = 1 << 20;

std::string json_string(const std::string& text) {
  return nlohmann::json(text).dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

std::string last_lines(const Hash128& hash) {
  return fmt::format("  \"hash\": \"{}\"\n}}\n", hex(hash));
}

// The text must be what manifest_text() writes, to the last byte.
Status check_own_hash(std::string_view text) {
  const std::size_t tail_bytes = last_lines({}).size();
  if (text.size() > tail_bytes) {
    const std::string_view body = text.substr(0, text.size() - tail_bytes);
    if (text.substr(body.size()) == last_lines(hash128(body))) return {};
  }
  return make_error(ErrorCode::kCorrupt,
                    "its own hash does not hold: the file was changed or damaged; copy it again "
                    "from where the store came from, or pack the model again");
}

Hash128 read_hash(JsonFields& fields, std::string_view name) {
  const std::optional<Hash128> hash = hash_from_hex(fields.text(name));
  if (!hash) {
    fields.fail(make_error(ErrorCode::kCorrupt, "{} is not a hash of 32 hexadecimal digits", name));
  }
  return hash.value_or(Hash128{});
}

Result<PackedLayer> read_layer(const nlohmann::json& json) {
  JsonFields fields(json, "layers: ");
  PackedLayer layer;
  layer.layer = static_cast<int>(fields.integer("layer", 0, kMaxCount));
  layer.num_experts = static_cast<int>(fields.integer("experts", 1, kMaxCount));
  layer.num_blocks = static_cast<int>(fields.integer("blocks", 1, kMaxCount));
  layer.expert_bytes = fields.integer("expert_bytes", 1, kMaxBytes);
  const std::string name = fields.text("format");
  RETURN_IF_ERROR(fields.status());
  const std::optional<QuantSpec> spec = parse_quant_spec(name);
  if (!spec) {
    return make_error(
        ErrorCode::kUnsupported,
        "layer {}: experts in format \"{}\", which this version does not know; take a "
        "newer stoker",
        layer.layer, name);
  }
  layer.spec = *spec;
  return layer;
}

Result<ManifestFile> read_file(const nlohmann::json& json) {
  JsonFields fields(json, "files: ");
  ManifestFile file;
  file.name = fields.text("name");
  file.bytes = fields.integer("bytes", 0, kMaxBytes);
  file.is_data = fields.find("head") != nullptr;
  if (file.is_data) {
    file.head = read_hash(fields, "head");
    file.table = read_hash(fields, "table");
  } else {
    file.hash = read_hash(fields, "hash");
  }
  RETURN_IF_ERROR(fields.status());
  if (!is_plain_file_name(file.name) || file.name == kManifestFile) {
    return make_error(ErrorCode::kCorrupt, "{} is not the name of a file of a store",
                      json_string(file.name));
  }
  return file;
}

// The elements of a list of objects, each read by `read`.
template <typename T>
Result<std::vector<T>> read_list(const nlohmann::json& document, std::string_view name,
                                 Result<T> (*read)(const nlohmann::json&)) {
  const auto list = document.find(name);
  if (list == document.end() || !list->is_array()) {
    return make_error(ErrorCode::kCorrupt, "{} must be a list", name);
  }
  std::vector<T> values;
  for (const nlohmann::json& json : *list) {
    if (!json.is_object()) {
      return make_error(ErrorCode::kCorrupt, "{} must hold objects, holds {}", name, shown(json));
    }
    ASSIGN_OR_RETURN(T value, read(json));
    values.push_back(std::move(value));
  }
  return values;
}

Status check_unique(const Manifest& manifest) {
  for (std::size_t i = 1; i < manifest.layers.size(); ++i) {
    if (manifest.layers[i].layer <= manifest.layers[i - 1].layer) {
      return make_error(ErrorCode::kCorrupt, "layer {} does not come after layer {}",
                        manifest.layers[i].layer, manifest.layers[i - 1].layer);
    }
  }
  std::set<std::string_view> names;
  for (const ManifestFile& file : manifest.files) {
    if (!names.insert(file.name).second) {
      return make_error(ErrorCode::kCorrupt, "file {} is listed twice", file.name);
    }
  }
  return {};
}

}  // namespace

const ManifestFile* Manifest::file(std::string_view name) const {
  const auto it = std::find_if(files.begin(), files.end(),
                               [&](const ManifestFile& file) { return file.name == name; });
  return it == files.end() ? nullptr : &*it;
}

Result<Manifest> parse_manifest(std::string_view text) {
  // 1. Is it ours, and of a version that we know? A newer one may hash itself in another way.
  ASSIGN_OR_RETURN(const nlohmann::json document, parse_json_object(text));
  JsonFields fields(document);
  const std::string format = fields.text("format");
  const std::int64_t version = fields.integer("version", 1, kMaxCount);
  RETURN_IF_ERROR(fields.status());
  if (format != kFormat) {
    return make_error(ErrorCode::kUnsupported, "format is {}, not \"{}\": this is no packed store",
                      json_string(format), kFormat);
  }
  if (version > kStoreVersion) {
    return make_error(ErrorCode::kUnsupported,
                      "the store has version {}, this stoker reads up to version {}: take a newer "
                      "stoker, or pack the model again",
                      version, kStoreVersion);
  }
  RETURN_IF_ERROR(check_own_hash(text));
  // 2. What it says.
  Manifest manifest;
  const nlohmann::json* source = fields.find("source");
  if (source == nullptr || !source->is_object()) {
    return make_error(ErrorCode::kCorrupt, "source must be an object");
  }
  JsonFields source_fields(*source, "source.");
  manifest.source_model = source_fields.text("model");
  manifest.source_config = read_hash(source_fields, "config");
  manifest.plan = read_hash(source_fields, "plan");
  RETURN_IF_ERROR(source_fields.status());
  ASSIGN_OR_RETURN(manifest.layers, read_list<PackedLayer>(document, "layers", read_layer));
  ASSIGN_OR_RETURN(manifest.files, read_list<ManifestFile>(document, "files", read_file));
  RETURN_IF_ERROR(check_unique(manifest));
  return manifest;
}

std::string manifest_text(const Manifest& manifest) {
  std::string text = fmt::format(
      "{{\n  \"format\": \"{}\",\n  \"version\": {},\n"
      "  \"source\": {{\"model\": {}, \"config\": \"{}\", \"plan\": \"{}\"}},\n  \"layers\": [",
      kFormat, kStoreVersion, json_string(manifest.source_model), hex(manifest.source_config),
      hex(manifest.plan));
  auto out = std::back_inserter(text);
  const char* separator = "";
  for (const PackedLayer& layer : manifest.layers) {
    fmt::format_to(out,
                   "{}\n    {{\"layer\": {}, \"experts\": {}, \"format\": \"{}\", "
                   "\"expert_bytes\": {}, \"blocks\": {}}}",
                   std::exchange(separator, ","), layer.layer, layer.num_experts,
                   quant_spec_name(layer.spec), layer.expert_bytes, layer.num_blocks);
  }
  text += "\n  ],\n  \"files\": [";
  separator = "";
  for (const ManifestFile& file : manifest.files) {
    fmt::format_to(out, "{}\n    {{\"name\": {}, \"bytes\": {}, ", std::exchange(separator, ","),
                   json_string(file.name), file.bytes);
    if (file.is_data) {
      fmt::format_to(out, "\"head\": \"{}\", \"table\": \"{}\"}}", hex(file.head), hex(file.table));
    } else {
      fmt::format_to(out, "\"hash\": \"{}\"}}", hex(file.hash));
    }
  }
  text += "\n  ],\n";
  return text + last_lines(hash128(text));
}

}  // namespace stoker::storage
