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
