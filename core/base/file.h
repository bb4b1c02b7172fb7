// Small text files, read whole.
#pragma once

#include <cstddef>
#include <filesystem>
#include <string>

#include "core/base/error.h"

namespace stoker {

// The content of a regular file of at most `max_bytes`. Errors name the path.
Result<std::string> read_small_file(const std::filesystem::path& path, std::size_t max_bytes);

}  // namespace stoker
