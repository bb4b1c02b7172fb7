// Files of `stoker eval`: token ids, logits, routes and selections, in the shapes of the reference
// checkpoints.
#pragma once

#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "core/base/error.h"
#include "core/base/ids.h"
#include "core/model/model_config.h"
#include "tools/routing_trace.h"

namespace stoker::tools {

// A JSON array of token ids.
Result<std::vector<TokenId>> read_tokens(const std::filesystem::path& path);

// Writes `<f4` [rows, cols] in C order, row by row.
class NpyWriter {
 public:
  static Result<NpyWriter> create(const std::filesystem::path& path, std::int64_t rows,
                                  std::int64_t cols);
  Status append(std::span<const float> row);
  Status close();

 private:
  struct CloseFile {
    void operator()(std::FILE* file) const { std::fclose(file); }
  };
  NpyWriter(std::string path, std::FILE* file) : path_(std::move(path)), file_(file) {}
  std::string path_;
  std::unique_ptr<std::FILE, CloseFile> file_;
};

// Selected positions of one layer by query row.
using LayerSelection = std::map<int, std::vector<std::int32_t>>;

struct Selections {
  std::map<int, LayerSelection> layers;
};

// What --force-routes takes: a routing trace, or a routes.json, which may leave layers and weights
// out and has no guesses. Checked against the model: layers, ids, shapes. A routes.json must have
// `num_rows` rows, unless that is 0; of a trace any number will do.
Result<RoutingTrace> read_routes(const std::filesystem::path& path, const ModelConfig& config,
                                 int num_rows);
// Layers, ids and shapes are checked against the model and `num_rows`.
Result<Selections> read_selections(const std::filesystem::path& path, const ModelConfig& config,
                                   int num_rows);
// A routes.json. `routes` has weights.
Status write_routes(const std::filesystem::path& path, const RoutingTrace& routes);
Status write_selections(const std::filesystem::path& path, const Selections& selections);

}  // namespace stoker::tools
