// Opens a model in files, whatever their form.
#pragma once

#include <filesystem>
#include <memory>
#include <span>

#include "core/base/error.h"
#include "core/model/model_config.h"
#include "storage/model_source.h"

namespace stoker::storage {

// The packed store or the published checkpoint in `dir`. `expert_dirs`: where a store's expert
// files lie, instead of in `dir`; refused for a checkpoint.
Result<std::unique_ptr<ModelSource>> open_model(
    const std::filesystem::path& dir, const ModelConfig& config,
    std::span<const std::filesystem::path> expert_dirs = {});

}  // namespace stoker::storage
