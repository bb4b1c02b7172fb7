// From flags to a model that runs: the one place that names concrete classes.
#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>

#include "core/base/error.h"
#include "core/base/progress.h"
#include "core/base/team.h"
#include "core/model/model_config.h"
#include "core/model/tensor_table.h"
#include "core/runtime/engine.h"
#include "core/runtime/runner.h"

namespace stoker::tools {

// Flags that every command which runs a model shares.
struct ModelFlags {
  std::string model;  // a checkpoint directory; empty: the model shipped with stoker
  std::string backend = "auto";
  std::string isa = "auto";
  int threads = 0;  // 0: one per physical core
  std::string ram;  // sizes as text: 512MiB, 48GiB, 24GB
  int ctx = 4096;
  std::string kv_cache;     // empty: bf16, or f32 with --backend reference
  std::string activations;  // likewise
};

// Declares MODEL as positional argument, and the flags.
void add_model_argument(CLI::App& app, ModelFlags& flags, bool required = false);
void add_model_flags(CLI::App& app, ModelFlags& flags);
void add_context_flag(CLI::App& app, ModelFlags& flags);

// The directory that MODEL means; the shipped model if it is empty.
Result<std::filesystem::path> model_directory(const std::string& model);

// Bytes of "512MiB", "48GiB", "24GB", "1000"; binary suffixes are powers of 1024, decimal ones of
// 1000.
Result<std::int64_t> parse_size(std::string_view text);

// A model that runs. Destroyed from the bottom up.
struct LoadedModel {
  std::filesystem::path directory;
  std::unique_ptr<Team> team;  // null for backends that need none
  std::shared_ptr<const Engine> engine;
  std::unique_ptr<Runner> runner;
  CategoryBytes bytes{};  // stored, by category
  double load_seconds = 0.0;
};

// Rows that a command needs beyond the defaults of RunnerOptions; 0 leaves the default.
struct RowNeeds {
  int prefill_rows = 0;
  int logit_rows = 0;
};

// What a model that runs takes, computed before anything is loaded.
struct MemoryNeed {
  std::int64_t dense_bytes = 0, expert_bytes = 0, kv_bytes = 0, workspace_bytes = 0;
  int context_tokens = 0;
  std::int64_t total() const;
};

// Refuses, with the numbers, what does not fit. `available_bytes` 0: not known, nothing is refused.
Status check_fits(const MemoryNeed& need, std::int64_t available_bytes);

Result<LoadedModel> load_model(const ModelFlags& flags, RowNeeds rows = {});

}  // namespace stoker::tools
