// From a published checkpoint to a packed store.
#pragma once

#include <filesystem>
#include <optional>

#include "core/base/error.h"
#include "core/tensor/quant_view.h"
#include "storage/checkpoint.h"
#include "storage/store_writer.h"

namespace stoker::storage {

struct PackOptions {
  std::optional<QuantSpec> experts = std::nullopt;  // empty: as the checkpoint stores them
  int num_files = 1;                                // expert files
};

// Packs `checkpoint`, which was opened in `dir`, as the store `out`; everything but the main
// layers' and the draft layers' routed experts goes to dense.safetensors unchanged. FP8 experts
// come from FP8 checkpoints alone. Resumes what it finds unfinished in `out`.partial.
Status pack(const std::filesystem::path& dir, const Checkpoint& checkpoint,
            const std::filesystem::path& out, const PackOptions& options,
            const StoreWriteOptions& write_options = {});

}  // namespace stoker::storage
