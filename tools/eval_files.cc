#include "tools/eval_files.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <fstream>
#include <limits>
#include <nlohmann/json.hpp>

#include "core/base/file.h"
#include "storage/write_file.h"

namespace stoker::tools {
namespace {

using nlohmann::json;

Result<json> read_json(const std::filesystem::path& path) {
  constexpr std::size_t kMaxBytes = std::size_t{1} << 30;
  ASSIGN_OR_RETURN(const std::string text, read_small_file(path, kMaxBytes));
  json value = json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (value.is_discarded())
    return make_error(ErrorCode::kCorrupt, "{} is not valid JSON", path.string());
  return value;
}

Error malformed(const std::filesystem::path& path, const std::string& what) {
  return make_error(ErrorCode::kCorrupt, "{}: {}", path.string(), what);
}

// An array of integers in [0, limit).
Result<std::vector<std::int32_t>> read_ids(const json& value, std::int64_t limit) {
  if (!value.is_array()) return Error(ErrorCode::kCorrupt, "an array of integers is expected");
  std::vector<std::int32_t> ids;
  ids.reserve(value.size());
  for (const json& id : value) {
    if (!id.is_number_integer() || id.get<std::int64_t>() < 0 || id.get<std::int64_t>() >= limit) {
      return make_error(ErrorCode::kCorrupt, "{} is not an integer in [0, {})", id.dump(), limit);
    }
    ids.push_back(id.get<std::int32_t>());
  }
  return ids;
}

// Calls fn(spec, entry) for every element of {"layers": [...]}, whose "layer" must name a main
// layer.
template <typename Fn>
Status for_each_layer(const std::filesystem::path& path, const ModelConfig& config,
                      const json& root, const Fn& fn) {
  if (!root.is_object() || !root.contains("layers") || !root["layers"].is_array()) {
    return malformed(path, "an object with an array \"layers\" is expected");
  }
  for (const json& entry : root["layers"]) {
    if (!entry.is_object() || !entry.contains("layer") || !entry["layer"].is_number_integer()) {
      return malformed(path, "every element of \"layers\" needs an integer \"layer\"");
    }
    const auto layer = entry["layer"].get<std::int64_t>();
    if (layer < 0 || layer >= config.num_hidden_layers) {
      return malformed(
          path, fmt::format("layer {} of a model with {} layers", layer, config.num_hidden_layers));
    }
    RETURN_IF_ERROR(fn(config.layers()[static_cast<std::size_t>(layer)], entry), "{}, layer {}",
                    path.string(), layer);
  }
  return {};
}

// Chosen experts of one layer: [T][top_k], best first; weights may be empty.
struct LayerRoutes {
  std::vector<std::int16_t> experts;
  std::vector<float> weights;
};

Status read_layer_routes(const LayerSpec& spec, const json& entry, int num_rows, LayerRoutes& out) {
  if (spec.ffn != FfnKind::kMoe) return Error(ErrorCode::kCorrupt, "this layer has no experts");
  const int top_k = spec.router.top_k;
  if (!entry.contains("experts") || !entry["experts"].is_array() ||
      static_cast<int>(entry["experts"].size()) != num_rows) {
    return make_error(ErrorCode::kCorrupt, "\"experts\" must list {} rows, one per token",
                      num_rows);
  }
  for (const json& row : entry["experts"]) {
    ASSIGN_OR_RETURN(const std::vector<std::int32_t> ids, read_ids(row, spec.router.num_experts));
    if (static_cast<int>(ids.size()) != top_k) {
      return make_error(ErrorCode::kCorrupt, "{} experts in a row, the model chooses {}",
                        ids.size(), top_k);
    }
    std::vector<std::int32_t> sorted = ids;
    std::sort(sorted.begin(), sorted.end());
    if (std::adjacent_find(sorted.begin(), sorted.end()) != sorted.end()) {
      return Error(ErrorCode::kCorrupt, "an expert stands twice in a row");
    }
    out.experts.insert(out.experts.end(), ids.begin(), ids.end());
  }
  if (!entry.contains("weights")) return {};
  for (const json& row : entry["weights"]) {
    if (!row.is_array() || static_cast<int>(row.size()) != top_k) {
      return make_error(ErrorCode::kCorrupt, "every row of \"weights\" needs {} numbers", top_k);
    }
    for (const json& weight : row) {
      if (!weight.is_number()) return Error(ErrorCode::kCorrupt, "a weight is not a number");
      out.weights.push_back(weight.get<float>());
    }
  }
  if (out.weights.size() != out.experts.size()) {
    return Error(ErrorCode::kCorrupt, "\"weights\" and \"experts\" have different shapes");
  }
  return {};
}

// Rows of the first layer listed, which the others must have too.
int rows_listed(const json& root) {
  if (!root.is_object() || !root.contains("layers") || !root["layers"].is_array()) return 0;
  for (const json& entry : root["layers"]) {
    if (entry.is_object() && entry.contains("experts")) {
      return static_cast<int>(entry["experts"].size());
    }
  }
  return 0;
}

// As a trace of one token a step.
RoutingTrace to_trace(const ModelConfig& config, const std::map<int, LayerRoutes>& layers,
                      int num_rows) {
  RoutingTrace trace;
  trace.num_experts = config.n_routed_experts;
  trace.top_k = config.num_experts_per_tok;
  for (const auto& [layer, routes] : layers) trace.layers.push_back(layer);
  const bool weighted = std::any_of(layers.begin(), layers.end(), [](const auto& entry) {
    return !entry.second.weights.empty();
  });
  const std::vector<float> unknown(static_cast<std::size_t>(trace.top_k),
                                   std::numeric_limits<float>::quiet_NaN());
  for (int row = 0; row < num_rows; ++row) {
    const auto begin = static_cast<std::ptrdiff_t>(row) * trace.top_k;
    for (const auto& [layer, routes] : layers) {
      const auto experts = routes.experts.begin() + begin;
      trace.experts.insert(trace.experts.end(), experts, experts + trace.top_k);
      if (!weighted) continue;
      const auto weights =
          routes.weights.empty() ? unknown.begin() : routes.weights.begin() + begin;
      trace.weights.insert(trace.weights.end(), weights, weights + trace.top_k);
    }
    trace.purpose.push_back(Purpose::kDecode);
    trace.step.push_back(row);
  }
  return trace;
}

// JSON has no zero bytes; the length of a safetensors header ends with some.
bool looks_like_safetensors(const std::filesystem::path& path) {
  std::array<char, 8> start{};
  std::ifstream file(path, std::ios::binary);
  file.read(start.data(), start.size());
  return file.gcount() == std::ssize(start) &&
         std::find(start.begin(), start.end(), '\0') != start.end();
}

Status read_layer_selection(const ModelConfig& config, const json& entry, int num_rows,
                            LayerSelection& out) {
  if (!entry.contains("rows") || !entry.contains("positions") || !entry["positions"].is_array()) {
    return Error(ErrorCode::kCorrupt, "\"rows\" and \"positions\" are expected");
  }
  ASSIGN_OR_RETURN(const std::vector<std::int32_t> rows, read_ids(entry["rows"], num_rows));
  if (rows.size() != entry["positions"].size()) {
    return make_error(ErrorCode::kCorrupt, "{} rows with {} lists of positions", rows.size(),
                      entry["positions"].size());
  }
  for (std::size_t i = 0; i < rows.size(); ++i) {
    ASSIGN_OR_RETURN(std::vector<std::int32_t> positions,
                     read_ids(entry["positions"][i], rows[i] + 1), "row {}", rows[i]);
    std::sort(positions.begin(), positions.end());
    if (positions.empty() || static_cast<int>(positions.size()) > config.index_topk ||
        std::adjacent_find(positions.begin(), positions.end()) != positions.end()) {
      return make_error(ErrorCode::kCorrupt, "row {}: 1 to {} distinct positions are expected",
                        rows[i], config.index_topk);
    }
    out[rows[i]] = std::move(positions);
  }
  return {};
}

}  // namespace

Result<std::vector<TokenId>> read_tokens(const std::filesystem::path& path) {
  ASSIGN_OR_RETURN(const json value, read_json(path));
  ASSIGN_OR_RETURN(std::vector<TokenId> tokens, read_ids(value, std::int64_t{1} << 31), "{}",
                   path.string());
  if (tokens.empty()) return malformed(path, "no token ids");
  return tokens;
}

Result<NpyWriter> NpyWriter::create(const std::filesystem::path& path, std::int64_t rows,
                                    std::int64_t cols) {
  std::FILE* const file = std::fopen(path.c_str(), "wb");
  if (file == nullptr) return make_error(ErrorCode::kIo, "cannot create {}", path.string());
  NpyWriter writer(path.string(), file);
  // Format 1.0: magic, version, header length, header padded with spaces so that data starts at a
  // multiple of 64.
  std::string header =
      fmt::format("{{'descr': '<f4', 'fortran_order': False, 'shape': ({}, {}), }}", rows, cols);
  constexpr std::size_t kPrefix = 10;
  header.append(63 - (kPrefix + header.size()) % 64, ' ');
  header.push_back('\n');
  const std::string prefix =
      fmt::format("\x93NUMPY\x01{}{}{}", '\0', static_cast<char>(header.size() & 0xff),
                  static_cast<char>(header.size() >> 8));
  if (std::fwrite(prefix.data(), 1, prefix.size(), file) != prefix.size() ||
      std::fwrite(header.data(), 1, header.size(), file) != header.size()) {
    return make_error(ErrorCode::kIo, "cannot write {}", path.string());
  }
  return writer;
}

Status NpyWriter::append(std::span<const float> row) {
  if (std::fwrite(row.data(), sizeof(float), row.size(), file_.get()) != row.size()) {
    return make_error(ErrorCode::kIo, "cannot write {}", path_);
  }
  return {};
}

Status NpyWriter::close() {
  if (std::fclose(file_.release()) != 0)
    return make_error(ErrorCode::kIo, "cannot write {}", path_);
  return {};
}

Result<RoutingTrace> read_routes(const std::filesystem::path& path, const ModelConfig& config,
                                 int num_rows) {
  if (looks_like_safetensors(path)) {
    ASSIGN_OR_RETURN(RoutingTrace trace, read_routing_trace(path));
    RETURN_IF_ERROR(check_trace(trace, config), "{}", path.string());
    return trace;
  }
  ASSIGN_OR_RETURN(const json root, read_json(path));
  if (num_rows == 0) num_rows = rows_listed(root);
  std::map<int, LayerRoutes> layers;
  RETURN_IF_ERROR(for_each_layer(path, config, root, [&](const LayerSpec& spec, const json& entry) {
    LayerRoutes& routes = layers[spec.index];
    routes = {};
    return read_layer_routes(spec, entry, num_rows, routes);
  }));
  if (layers.empty() || num_rows == 0) return malformed(path, "it lists no routes");
  return to_trace(config, layers, num_rows);
}

Result<Selections> read_selections(const std::filesystem::path& path, const ModelConfig& config,
                                   int num_rows) {
  if (!config.indexer_dims())
    return malformed(path, "this model selects nothing: its attention is dense");
  ASSIGN_OR_RETURN(const json root, read_json(path));
  Selections selections;
  RETURN_IF_ERROR(for_each_layer(path, config, root, [&](const LayerSpec& spec, const json& entry) {
    return read_layer_selection(config, entry, num_rows, selections.layers[spec.index]);
  }));
  return selections;
}

Status write_routes(const std::filesystem::path& path, const RoutingTrace& routes) {
  std::string text = "{\"layers\":[";
  for (int place = 0; place < routes.num_layers(); ++place) {
    if (place > 0) text += ",\n";
    std::string experts, weights;
    for (std::int64_t token = 0; token < routes.num_tokens(); ++token) {
      const char* const comma = token > 0 ? "," : "";
      experts += fmt::format("{}[{}]", comma, fmt::join(routes.chosen(token, place), ","));
      weights +=
          fmt::format("{}[{:.9g}]", comma, fmt::join(routes.chosen_weights(token, place), ","));
    }
    text += fmt::format("{{\"layer\":{},\"experts\":[{}],\"weights\":[{}]}}",
                        routes.layers[static_cast<std::size_t>(place)], experts, weights);
  }
  return storage::write_text_file(path, text + "]}\n");
}

Status write_selections(const std::filesystem::path& path, const Selections& selections) {
  std::string text = "{\"layers\":[";
  for (const auto& [layer, rows] : selections.layers) {
    if (text.back() != '[') text += ",\n";
    std::string numbers, positions;
    for (const auto& [row, list] : rows) {
      const char* const comma = numbers.empty() ? "" : ",";
      numbers += fmt::format("{}{}", comma, row);
      positions += fmt::format("{}[{}]", comma, fmt::join(list, ","));
    }
    text +=
        fmt::format("{{\"layer\":{},\"rows\":[{}],\"positions\":[{}]}}", layer, numbers, positions);
  }
  return storage::write_text_file(path, text + "]}\n");
}

}  // namespace stoker::tools
