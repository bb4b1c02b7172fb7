#include "core/interface/expert_provider.h"

namespace stoker {
namespace {

// Calls fn(mine, other's) for every counter.
template <typename Fn>
void for_each_counter(LayerCounters& mine, const LayerCounters& other, Fn fn) {
  fn(mine.hit, other.hit);
  fn(mine.late, other.late);
  fn(mine.miss, other.miss);
  fn(mine.demand_bytes, other.demand_bytes);
  fn(mine.prefetch_used_bytes, other.prefetch_used_bytes);
  fn(mine.prefetch_wasted_bytes, other.prefetch_wasted_bytes);
  fn(mine.felt_wait_us, other.felt_wait_us);
  fn(mine.device_hit, other.device_hit);
  fn(mine.device_upload, other.device_upload);
  fn(mine.promoted_bytes, other.promoted_bytes);
  fn(mine.host_us, other.host_us);
  fn(mine.retried_blocks, other.retried_blocks);
  fn(mine.repaired_blocks, other.repaired_blocks);
}

}  // namespace

ExpertPart ExpertPart::block_at(int index) const {
  CHECK(index >= 0 && index < num_blocks, "block {} of a run of {}", index, num_blocks);
  ExpertPart part = *this;
  part.num_blocks = 1;
  part.stride = 0;
  part.block += index;
  part.row_begin += index * num_rows;
  for (QuantView* const view : {&part.gate, &part.up, &part.down}) {
    if (view->payload != nullptr) view->payload += index * stride;
    if (view->scales != nullptr) view->scales += index * stride;
  }
  return part;
}

bool ExpertPart::extend(const ExpertPart& next) {
  const auto payload = [this](const ExpertPart& part) {
    return half == ExpertHalf::kGateUp ? part.gate.payload : part.down.payload;
  };
  const std::int64_t further = payload(next) - payload(*this);
  const auto as_far = [further](const std::byte* from, const std::byte* to) {
    return from == nullptr ? to == nullptr : to - from == further;
  };
  const auto alike = [&](const QuantView& mine, const QuantView& other) {
    return mine.rows == other.rows && mine.spec == other.spec && mine.device == other.device &&
           as_far(mine.payload, other.payload) && as_far(mine.scales, other.scales);
  };
  if (next.use != use || next.half != half || next.site != site || next.num_rows != num_rows ||
      next.row_begin != row_begin + num_blocks * num_rows || next.num_blocks != 1 ||
      next.guard != nullptr || guard != nullptr || further <= 0 ||
      (num_blocks > 1 && further != num_blocks * stride) || !alike(gate, next.gate) ||
      !alike(up, next.up) || !alike(down, next.down)) {
    return false;
  }
  if (num_blocks == 1) stride = further;
  ++num_blocks;
  return true;
}

std::vector<ExpertPart> in_runs(std::span<const ExpertPart> blocks) {
  std::vector<ExpertPart> runs;
  for (const ExpertPart& block : blocks) {
    if (runs.empty() || !runs.back().extend(block)) runs.push_back(block);
  }
  return runs;
}

LayerCounters& LayerCounters::operator+=(const LayerCounters& other) {
  for_each_counter(*this, other, [](std::int64_t& a, std::int64_t b) { a += b; });
  return *this;
}

LayerCounters LayerCounters::operator-(const LayerCounters& other) const {
  LayerCounters result = *this;
  for_each_counter(result, other, [](std::int64_t& a, std::int64_t b) { a -= b; });
  return result;
}

}  // namespace stoker
