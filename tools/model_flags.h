// Flags that every command which runs a model shares, and what their values mean.
#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "core/base/error.h"
#include "tools/shorter_context.h"

namespace stoker::tools {

struct ModelFlags {
  std::string model;  // a checkpoint or a store; empty: the model shipped with stoker
  std::string backend = "auto";
  std::string isa = "auto";
  int threads = 0;                 // 0: one per physical core
  std::string ram;                 // a size; empty: what the machine has to spare
  std::vector<std::string> store;  // directories of the expert files; empty: the model's own
  std::string io = "auto";
  std::string direct = "auto";
  std::string prefetch = "on";
  std::vector<int> devices;          // indices into list_gpus(); empty: all
  std::string vram;                  // a size, of each device; empty: what it has to spare
  std::string expert_site = "auto";  // who computes experts that no device holds
  std::string expert_arithmetic = "defined";
  int ctx = 4096;
  ContextFlag context_flag;
  int prefill_rows = 0;      // 0: as many as the activation budget holds
  std::string kv_cache;      // empty: bf16, or f32 with --backend reference
  std::string activations;   // likewise
  std::string stats;         // a file; empty: none
  std::string record_trace;  // likewise
};

// Declares MODEL as positional argument, and the flags.
void add_model_argument(CLI::App& app, ModelFlags& flags, bool required = false);
void add_model_flags(CLI::App& app, ModelFlags& flags);
void add_context_flag(CLI::App& app, ModelFlags& flags);

// The directory that MODEL means; the shipped model if it is empty.
Result<std::filesystem::path> model_directory(const std::string& model);

// Bytes of "512MiB", "48GiB", "24GB", "1000"; binary suffixes are powers of 1024, decimal ones of
// 1000. Never 0; kUsage for anything else.
Result<std::int64_t> parse_size(std::string_view text);

}  // namespace stoker::tools
