#include "tools/memory_plan.h"

#include <fmt/format.h>

#include <algorithm>
#include <string>

#include "core/runtime/kv_pool.h"

namespace stoker::tools {
namespace {

double gib(std::int64_t bytes) { return static_cast<double>(bytes) / (1 << 30); }

std::string fixed_parts(const MemoryNeed& need) {
  return fmt::format(
      "{:.2f} GiB for weights beside the routed experts, {:.2f} for {} tokens of context and "
      "{:.2f} "
      "for activations",
      gib(need.dense_bytes), gib(need.kv_bytes), need.context_tokens, gib(need.workspace_bytes));
}

// A context that would leave `expert_bytes` to experts; 0: none would, or it takes nothing here.
std::int64_t context_that_fits(const MemoryNeed& need, std::int64_t expert_bytes,
                               std::int64_t available_bytes) {
  if (need.kv_bytes == 0) return 0;
  const std::int64_t page_bytes = need.kv_bytes / pages_for(need.context_tokens);
  const std::int64_t room =
      available_bytes - need.dense_bytes - need.workspace_bytes - expert_bytes;
  return room > 0 ? room / page_bytes * kPageTokens : 0;
}

}  // namespace

Result<int> plan_slots(const MemoryNeed& need, std::int64_t ram_bytes,
                       std::int64_t available_bytes) {
  const bool known = available_bytes > 0;
  const std::int64_t everything = need.num_experts * need.slot_bytes;
  const std::int64_t least = need.fewest_slots * need.slot_bytes;
  const std::int64_t spared = available_bytes / 16;
  // What else could be done than what stands before and after it.
  const auto or_shorter_context = [&] {
    std::int64_t experts = std::min(ram_bytes, everything);
    if (ram_bytes == 0 && need.slot_bytes > 0) experts = least + spared;
    return shorter_context(context_that_fits(need, experts, available_bytes), need.context_flag);
  };
  if (known && need.fixed_bytes() > available_bytes) {
    return make_error(ErrorCode::kResource,
                      "this model needs {}, {:.2f} GiB of memory are available: free some{} or "
                      "take a smaller model",
                      fixed_parts(need), gib(available_bytes), or_shorter_context());
  }
  if (need.slot_bytes == 0) return 0;
  // 1. The budget.
  const std::int64_t room = available_bytes - need.fixed_bytes();
  std::int64_t budget = everything;
  if (ram_bytes > 0) {
    budget = std::min(ram_bytes, everything);
  } else if (known) {
    budget = std::min(room - spared, everything);
  }
  // 2. Does it hold what one layer of a token needs?
  if (budget < least && ram_bytes > 0) {
    return make_error(
        ErrorCode::kResource,
        "--ram {} holds {} experts of {} bytes; a token needs {} in one layer, so give "
        "it at least {} bytes ({:.2f} GiB)",
        ram_bytes, budget / need.slot_bytes, need.slot_bytes, need.fewest_slots, least, gib(least));
  }
  // 3. And does the machine hold it?
  if (known && (budget < least || budget > room)) {
    const bool less_ram = ram_bytes > 0 && room >= least;
    return make_error(
        ErrorCode::kResource,
        "{:.2f} GiB for routed experts (a token needs {:.2f} in one layer) are too many: "
        "this model needs {} besides, and {:.2f} GiB of memory are available: free some{} or {}",
        gib(std::max(budget, least)), gib(least), fixed_parts(need), gib(available_bytes),
        or_shorter_context(),
        less_ram ? fmt::format("give --ram {} bytes or less", room) : "take a smaller model");
  }
  return static_cast<int>(budget / need.slot_bytes);
}

}  // namespace stoker::tools
