// A full-width slice of a model with random weights, written as a store at the speed of the drive:
// for benchmarks, where the bytes must be real and their meaning does not matter.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>

#include "core/base/error.h"
#include "core/tensor/quant_view.h"
#include "storage/store_writer.h"

namespace stoker::storage {

struct SynthOptions {
  int moe_layers = 1;  // after at most one dense layer; draft layers are dropped
  std::optional<int> vocab_size;
  QuantSpec experts{QuantFormat::kInt4, 64};  // FP8, INT8 or INT4
  int num_files = 1;
  std::uint64_t seed = 1;
};

// `config_json` with as many layers and words as the options say; everything else stays.
Result<std::string> slice_config(std::string_view config_json, const SynthOptions& options);

// Writes the store `out` of a model with `config_json` as slice_config() gives it. No weight is
// zero throughout or not finite, no two experts are alike, and activations stay of order one; the
// same options give the same bytes.
Status synthesize(std::string_view config_json, const SynthOptions& options,
                  const std::filesystem::path& out, const ProgressFn& progress = {});

}  // namespace stoker::storage
