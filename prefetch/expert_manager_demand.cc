// The demand half of ExpertManager: from the leases of an open set to its release.
#include <algorithm>
#include <utility>

#include "prefetch/expert_manager.h"

namespace stoker {
namespace {

// A demand of more experts than this many tokens could ask for alone is a sweep: most of them are
// passers-by that should not displace what decode keeps coming back to.
constexpr int kSweepTokens = 4;

}  // namespace

Result<ExpertSetPtr> ExpertManager::demand(int layer, std::span<const ExpertUse> uses) {
  CHECK(!open_, "a set of layer {} is open", layer_);
  const ExpertShapes::Layer& shape = shapes_.layer(layer);
  pump();
  open_ = true;
  layer_ = layer;
  uses_ = uses;
  sweep_ = static_cast<int>(uses.size()) > kSweepTokens * shape.top_k;
  error_.reset();
  wave_ = 0;
  num_retirable_ = 0;
  num_passers_ = 0;
  waiting_.clear();
  progress_.open(static_cast<int>(uses.size()), shape);
  if (uses.empty() || !uses.front().draft) {
    cache_.begin_turn(layer);
    usage_.observe(layer, uses);
    prefetcher_.begin_turn(layer, uses, sweep_, clock_.now_us(),
                           [this](ExpertId id) { return would_miss(id); });
  }
  rank_uses();
  // 1. What is there is leased before anything is evicted for the rest.
  for (const int use : by_rows_) {
    Use& u = use_states_[use];
    u.phase = Use::Phase::kWaiting;
    u.brought = false;
    if (held_above(id_of(use))) {
      u.phase = Use::Phase::kAbove;
      progress_.skip(use);
      ++count(layer).hit;
      continue;
    }
    const std::optional<SlotIdx> slot = cache_.slot_of(id_of(use));
    if (!slot) continue;
    ++(loader_.all_landed(*slot) ? count(layer).hit : count(layer).late);
    take_over(use, *slot);
  }
  // 2. The rest is read, into as many slots as there are.
  for (auto use = by_rows_.rbegin(); use != by_rows_.rend(); ++use) {
    if (use_states_[*use].phase == Use::Phase::kWaiting) waiting_.push_back(*use);
  }
  count(layer).miss += static_cast<std::int64_t>(waiting_.size());
  expire_guesses(layer);
  admit();
  loader_.submit();
  return ExpertSetPtr(&set_);
}

// The order in which uses get slots and reads: those with most rows first, because they take the
// longest to compute. And what their leases will be worth: of a sweep only the hottest stay, as
// many as are a layer's share of the slots; the others go first, or back to where they were.
void ExpertManager::rank_uses() {
  by_rows_.clear();
  for (int use = 0; use < static_cast<int>(uses_.size()); ++use) {
    CHECK(use == 0 || id_of(use - 1) < id_of(use), "uses {} and {} are not ascending", use - 1,
          use);
    by_rows_.push_back(use);
  }
  std::sort(by_rows_.begin(), by_rows_.end(), [&](int a, int b) {
    const std::size_t rows_a = uses_[a].rows.size();
    const std::size_t rows_b = uses_[b].rows.size();
    return rows_a != rows_b ? rows_a > rows_b : a < b;
  });
  for (int rank = 0; rank < static_cast<int>(by_rows_.size()); ++rank) {
    const int use = by_rows_[rank];
    Standing& standing = use_states_[use].standing;
    standing = Standing::kUsed;
    if (!sweep_ || rank < layer_share()) continue;
    const std::optional<SlotIdx> slot = cache_.slot_of(id_of(use));
    const bool was_used = slot && cache_.resident(id_of(use)) && state(*slot).demanded;
    standing = was_used ? Standing::kKept : Standing::kCold;
  }
}

// An expert that is there or on its way, for whatever reason, becomes this demand's.
void ExpertManager::take_over(int use, SlotIdx slot) {
  Use& u = use_states_[use];
  SlotState& s = state(slot);
  u.slot = slot;
  if (cache_.resident(id_of(use))) {
    u.phase = Use::Phase::kLeased;
    u.lease = std::move(cache_.lease(id_of(use)).value());
    s.lease.release(Standing::kKept);  // of an earlier demand that was given up
  } else {
    u.phase = Use::Phase::kReading;
  }
  if (s.errand == Errand::kAhead) std::erase(ahead_, slot);
  s.errand = Errand::kDemand;
  s.use = use;
  count_as_demanded(slot);
  loader_.fetch(slot, ReadClass::kDemand, 0.0f, -1.0f);  // also what turns out bad from now on
  for (int block = 0; block < shapes_.layer(layer_).num_blocks(); ++block) {
    if (loader_.usable(slot, block)) progress_.landed(use, block);
  }
  commit_if_landed(use);
}

void ExpertManager::count_as_demanded(SlotIdx slot) {
  SlotState& s = state(slot);
  s.demanded = true;
  s.live_guess = false;
  count(layer_).prefetch_used_bytes += std::exchange(s.guessed_bytes, 0);
}

// Gives slots to waiting uses, while there are any.
void ExpertManager::admit() {
  if (waiting_.empty()) return;
  bool admitted = false;
  while (!waiting_.empty() && admit(waiting_.back())) {
    waiting_.pop_back();
    admitted = true;
  }
  if (admitted) ++wave_;
  if (!waiting_.empty() && cache_.num_evictable() == 0) give_up_reading_ahead();
}

bool ExpertManager::admit(int use) {
  Use& u = use_states_[use];
  const auto slot =
      may_evict_for(use) ? cache_.reserve(id_of(use)) : cache_.reserve_free(id_of(use));
  if (!slot) return false;
  if (u.standing == Standing::kCold) {
    ++num_passers_;
    progress_.set_urgent(use);
  }
  assign(*slot, id_of(use));
  u.phase = Use::Phase::kReading;
  u.slot = *slot;
  u.brought = true;
  SlotState& s = state(*slot);
  s.errand = Errand::kDemand;
  s.use = use;
  s.demanded = true;
  const auto first = static_cast<float>(-2 * wave_);
  loader_.fetch(*slot, ReadClass::kDemand, first, first - 1.0f);
  return true;
}

bool ExpertManager::may_evict_for(int use) {
  if (uses_[use].draft) return false;
  if (use_states_[use].standing != Standing::kCold) return true;
  // A sweep's passers-by take turns in a part of the layer's share, and in what is cold anyway.
  if (num_passers_ < max_passers()) return true;
  const std::optional<SlotIdx> victim = cache_.victim();
  return victim && cache_.standing(*victim) == Standing::kCold;
}

int ExpertManager::max_passers() const {
  return std::max(shapes_.layer(layer_).top_k, layer_share() / 4);
}

int ExpertManager::layer_share() const {
  return std::max(shapes_.layer(layer_).top_k, cache_.num_slots() / shapes_.num_moe_layers());
}

// Once all of an expert has landed it is resident; its blocks may still have to be checked.
void ExpertManager::commit_if_landed(int use) {
  Use& u = use_states_[use];
  if (u.phase != Use::Phase::kReading || !loader_.all_landed(u.slot)) return;
  u.phase = Use::Phase::kLeased;
  u.lease = cache_.commit_leased(u.slot);
}

// In waves, parts are held back now and then until the caller has retired what it has computed:
// the drive should not stand still because slots are full of experts that nobody needs any more.
std::size_t ExpertManager::take_ready(std::span<ExpertPart> out) {
  pump();
  std::size_t taken = 0;
  if (waits_for_slots()) out = {};
  while (taken < out.size()) {
    const std::optional<DemandProgress::Place> place = progress_.take();
    if (!place) break;
    ExpertPart& part = out[taken++];
    part = loader_.lend(use_states_[place->use].slot, place->block);
    part.use = place->use;
    part.site = site_;
    if (part.guard == nullptr) pass(place->use, place->block);
  }
  felt_wait(taken == 0 && !out.empty() && !error_ && !exhausted() && !waits_for_slots() &&
            !loader_.awaits_checks());
  return taken;
}

void ExpertManager::pass(int use, int block) {
  progress_.passed(use, block);
  if (progress_.done(use)) ++num_retirable_;
}

bool ExpertManager::exhausted() const { return progress_.all_taken() && loader_.all_checks_good(); }

bool ExpertManager::waits_for_slots() const {
  if (waiting_.empty() || num_retirable_ == 0) return false;
  return !progress_.any_ready() || num_retirable_ >= max_passers() / 4;
}

void ExpertManager::retire_taken() {
  if (num_retirable_ == 0) return;
  for (int use = 0; use < static_cast<int>(uses_.size()); ++use) {
    if (progress_.done(use) && use_states_[use].phase == Use::Phase::kLeased) retire(use);
  }
  num_retirable_ = 0;
  admit();
  loader_.submit();
}

void ExpertManager::retire(int use) {
  Use& u = use_states_[use];
  u.phase = Use::Phase::kRetired;
  state(u.slot).errand = Errand::kNone;
  u.lease.release(u.standing);
  if (u.brought && u.standing == Standing::kCold) --num_passers_;
  // A draft takes nobody's slot, so its own experts hand theirs on.
  if (u.brought && uses_[use].draft && cache_.num_free() < static_cast<int>(waiting_.size())) {
    cache_.evict(u.slot);
  }
}

Status ExpertManager::set_status() const {
  if (error_) return *error_;
  if (waiting_.empty()) return {};
  const bool growing = cache_.num_usable() < cache_.num_slots();
  if (growing && cache_.num_usable() == 0) return arena_.status();
  // A draft may not evict: where nothing is free or will be, it cannot be served.
  const bool may_get_one = cache_.num_free() > 0 || cache_.num_in_flight() > 0 || num_held() > 0 ||
                           (growing && arena_.status().ok());
  if (uses_[waiting_.back()].draft && !may_get_one)
    return Error(ErrorCode::kResource, "no slot is free for the experts of a draft");
  return {};
}

int ExpertManager::num_held() const {
  return static_cast<int>(std::count_if(
      use_states_.begin(), use_states_.begin() + static_cast<std::ptrdiff_t>(uses_.size()),
      [](const Use& use) {
        return use.phase == Use::Phase::kReading || use.phase == Use::Phase::kLeased;
      }));
}

// Time stands still from the first take_ready() that gives nothing to the next that does, while
// nobody computes.
void ExpertManager::felt_wait(bool standing_still) {
  if (standing_still == still_since_us_.has_value()) return;
  const std::int64_t now_us = clock_.now_us();
  if (standing_still) {
    still_since_us_ = now_us;
  } else {
    count(layer_).felt_wait_us += now_us - *still_since_us_;
    still_since_us_.reset();
  }
}

void ExpertManager::release_set() {
  CHECK(open_, "a set is released twice");
  felt_wait(false);
  loader_.take_back_lent();
  for (int use = 0; use < static_cast<int>(uses_.size()); ++use) {
    Use& u = use_states_[use];
    if (u.phase == Use::Phase::kLeased && loader_.all_landed(u.slot)) {
      retire(use);
    } else if (u.phase == Use::Phase::kLeased || u.phase == Use::Phase::kReading) {
      state(u.slot).lease = std::move(u.lease);
      drain(u.slot);
    }
  }
  const bool draft = !uses_.empty() && uses_.front().draft;
  if (!error_ && progress_.all_taken() && !draft) prefetcher_.end_turn(clock_.now_us());
  waiting_.clear();
  uses_ = {};
  open_ = false;
  pump();
}

}  // namespace stoker
