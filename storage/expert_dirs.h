// Where the expert files of a store are looked for.
#pragma once

#include <filesystem>
#include <span>
#include <string_view>
#include <vector>

#include "core/base/error.h"

namespace stoker::storage {

// The directories named by --store, each once however it is spelled; `dir` if none is named.
Result<std::vector<std::filesystem::path>> expert_directories(
    const std::filesystem::path& dir, std::span<const std::filesystem::path> named);

// The copies of file `name` in `dirs`, in their order; a file that two paths lead to counts once.
std::vector<std::filesystem::path> find_copies(std::span<const std::filesystem::path> dirs,
                                               std::string_view name);

}  // namespace stoker::storage
