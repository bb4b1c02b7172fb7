// Where long work reports how far it is. Libraries call it; tools draw it.
#pragma once

#include <cstdint>
#include <functional>

namespace stoker {

// done and total in the unit of the work at hand (bytes when loading, tokens in prefill).
using ProgressFn = std::function<void(std::int64_t done, std::int64_t total)>;

}  // namespace stoker
