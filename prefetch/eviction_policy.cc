#include "prefetch/eviction_policy.h"

#include <fmt/ranges.h>

#include <array>

#include "prefetch/eviction_policies.h"

namespace stoker {
namespace {

constexpr std::array<std::string_view, 5> kNames = {"lru", "lrfu", "slru", "s3fifo", "turns"};

}  // namespace

std::span<const std::string_view> eviction_policy_names() { return kNames; }

Result<std::unique_ptr<EvictionPolicy>> make_eviction_policy(std::string_view name, ExpertGrid grid,
                                                             int num_slots) {
  if (name == "lru") return make_lru_policy(num_slots);
  if (name == "lrfu") return make_lrfu_policy(grid, num_slots);
  if (name == "slru") return make_slru_policy(num_slots);
  if (name == "s3fifo") return make_s3fifo_policy(grid, num_slots);
  if (name == "turns") return make_turns_policy(grid, num_slots);
  return make_error(ErrorCode::kInvalidArgument, "no eviction policy '{}': there are {}", name,
                    fmt::join(kNames, ", "));
}

}  // namespace stoker
