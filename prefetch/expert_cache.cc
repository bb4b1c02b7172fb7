#include "prefetch/expert_cache.h"

#include <utility>

namespace stoker {

ExpertLease& ExpertLease::operator=(ExpertLease&& other) noexcept {
  release(Standing::kUsed);
  cache_ = std::exchange(other.cache_, nullptr);
  slot_ = other.slot_;
  return *this;
}

void ExpertLease::release(Standing standing) {
  if (cache_ != nullptr) std::exchange(cache_, nullptr)->release(slot_, standing);
}

ExpertCache::ExpertCache(ExpertGrid grid, int num_slots, std::unique_ptr<EvictionPolicy> policy)
    : grid_(grid),
      policy_(std::move(policy)),
      slots_(static_cast<std::size_t>(num_slots)),
      slot_of_(static_cast<std::size_t>(grid.size()), kNowhere) {
  free_.reserve(slots_.size());
}

ExpertCache::~ExpertCache() { CHECK(num_leased_ == 0, "{} slots are still leased", num_leased_); }

std::size_t ExpertCache::checked(SlotIdx slot) const {
  CHECK(slot >= 0 && slot < num_usable_, "slot {} of {} usable ones", slot, num_usable_);
  return static_cast<std::size_t>(slot);
}

void ExpertCache::grow(int num_usable) {
  CHECK(num_usable >= num_usable_ && num_usable <= num_slots(), "{} usable slots after {}, of {}",
        num_usable, num_usable_, num_slots());
  // The new ones go below those that are free already: low slots are used first.
  const auto added = static_cast<std::size_t>(num_usable - num_usable_);
  if (added == 0) return;
  free_.insert(free_.begin(), added, kNowhere);
  for (std::size_t i = 0; i < added; ++i) free_[i] = num_usable - 1 - static_cast<SlotIdx>(i);
  num_usable_ = num_usable;
}

std::optional<SlotIdx> ExpertCache::slot_of(ExpertId id) const {
  const SlotIdx slot = slot_of_[grid_.index(id)];
  return slot == kNowhere ? std::nullopt : std::optional(slot);
}

std::optional<ExpertId> ExpertCache::expert_in(SlotIdx slot) const {
  const Slot& s = slots_[checked(slot)];
  return s.state == State::kFree ? std::nullopt : std::optional(s.id);
}

bool ExpertCache::resident(ExpertId id) const {
  const std::optional<SlotIdx> slot = slot_of(id);
  return slot && slots_[checked(*slot)].state == State::kResident;
}

bool ExpertCache::in_flight(ExpertId id) const {
  const std::optional<SlotIdx> slot = slot_of(id);
  return slot && slots_[checked(*slot)].state == State::kInFlight;
}

std::optional<ExpertLease> ExpertCache::lease(ExpertId id) {
  if (!resident(id)) return std::nullopt;
  const SlotIdx slot = *slot_of(id);
  if (slots_[checked(slot)].num_leases++ == 0) {
    policy_->leave(slot, /*evicted=*/false);
    ++num_leased_;
  }
  return ExpertLease(*this, slot);
}

void ExpertCache::release(SlotIdx slot, Standing standing) {
  Slot& s = slots_[checked(slot)];
  CHECK(s.num_leases > 0, "slot {} is not leased", slot);
  if (--s.num_leases > 0) return;
  --num_leased_;
  enter(slot, standing);
}

void ExpertCache::enter(SlotIdx slot, Standing standing) {
  Slot& s = slots_[checked(slot)];
  CHECK(standing != Standing::kKept || s.was_ranked, "slot {} has no old place", slot);
  if (standing != Standing::kKept) s.standing = standing;
  s.was_ranked = true;
  policy_->enter(slot, s.id, standing);
}

std::optional<SlotIdx> ExpertCache::reserve_free(ExpertId id) {
  SlotIdx& place = slot_of_[grid_.index(id)];
  CHECK(place == kNowhere, "expert {} of layer {} has slot {}", id.expert, id.layer, place);
  if (free_.empty()) return std::nullopt;
  place = free_.back();
  free_.pop_back();
  slots_[checked(place)] = {.id = id, .state = State::kInFlight};
  ++num_in_flight_;
  return place;
}

std::optional<SlotIdx> ExpertCache::reserve(ExpertId id) {
  if (free_.empty() && num_evictable() > 0) evict(policy_->victim());
  return reserve_free(id);
}

ExpertCache::Slot& ExpertCache::arrived(SlotIdx slot) {
  Slot& s = slots_[checked(slot)];
  CHECK(s.state == State::kInFlight, "nobody is on the way to slot {}", slot);
  s.state = State::kResident;
  --num_in_flight_;
  return s;
}

void ExpertCache::commit(SlotIdx slot, Standing standing) {
  arrived(slot);
  enter(slot, standing);
}

ExpertLease ExpertCache::commit_leased(SlotIdx slot) {
  arrived(slot).num_leases = 1;
  ++num_leased_;
  return ExpertLease(*this, slot);
}

void ExpertCache::abandon(SlotIdx slot) {
  Slot& s = slots_[checked(slot)];
  CHECK(s.state == State::kInFlight, "abandon of slot {}", slot);
  --num_in_flight_;
  slot_of_[grid_.index(s.id)] = kNowhere;
  s = {};
  free_.push_back(slot);
}

std::optional<SlotIdx> ExpertCache::victim() const {
  return num_evictable() > 0 ? std::optional(policy_->victim()) : std::nullopt;
}

void ExpertCache::evict(SlotIdx slot) {
  Slot& s = slots_[checked(slot)];
  CHECK(s.state == State::kResident && s.num_leases == 0, "slot {} may not be evicted", slot);
  policy_->leave(slot, /*evicted=*/true);
  slot_of_[grid_.index(s.id)] = kNowhere;
  s = {};
  free_.push_back(slot);
}

void ExpertCache::rank(SlotIdx slot, Standing standing) {
  Slot& s = slots_[checked(slot)];
  CHECK(s.state == State::kResident && s.num_leases == 0, "slot {} is not in the ranking", slot);
  policy_->leave(slot, /*evicted=*/false);
  enter(slot, standing);
}

}  // namespace stoker
