// The half of ExpertManager that reads what nobody has demanded yet.
#include <algorithm>
#include <utility>

#include "prefetch/expert_manager.h"

namespace stoker {
namespace {

// Of a demand, bytes that may still be landing when the drive counts as idle: what is fetched ahead
// then follows without a gap.
constexpr std::int64_t kTailBytes = std::int64_t{2} << 20;

// A guess whose turn has passed is read to its end if this share of it is there.
constexpr double kMostly = 0.75;

constexpr int kMaxWarming = 32;  // experts under way

}  // namespace

void ExpertManager::begin_step(std::span<const TokenId> tokens) {
  prefetcher_.begin_step(tokens, [this](ExpertId id) { return would_miss(id); });
  pump();
}

void ExpertManager::note_choices(int layer, std::span<const TokenId> tokens,
                                 std::span<const std::int32_t> experts) {
  prefetcher_.note_choices(layer, tokens, experts);
}

// Where everybody is resident there is nothing to guess.
int ExpertManager::num_ranked_guesses() const {
  const int num_resident = cache_.num_evictable() + cache_.num_leased();
  return num_resident == num_experts_ ? 0 : prefetcher_.num_ranked_guesses();
}

void ExpertManager::hint(const LookAhead& guesses) {
  prefetcher_.look_ahead(guesses, [this](ExpertId id) { return would_miss(id); });
  fetch_ahead();
  loader_.submit();
}

// Whether a demand for `id` would be a miss but for guesses.
bool ExpertManager::would_miss(ExpertId id) const {
  if (held_above(id)) return false;
  const std::optional<SlotIdx> slot = cache_.slot_of(id);
  return !slot || (!state(*slot).demanded && !state(*slot).warm);
}

// Demand goes first: nothing is read ahead while a use waits for a slot or for its blocks.
void ExpertManager::fetch_ahead() {
  if (open_ && (!waiting_.empty() || demand_is_landing())) return;
  const std::int64_t now_us = clock_.now_us();
  prefetcher_.drive_is_idle(now_us);
  const bool may_warm = next_warm_ < warm_.size() && cache_.num_free() > 0;
  if (!prefetcher_.fetching() && !may_warm) return;
  if (reader_.load().queued_demand_bytes > 0) return;
  fetch_wishes(now_us);
  if (may_warm) fetch_warm();
}

bool ExpertManager::demand_is_landing() const {
  std::int64_t bytes = 0;
  for (std::size_t use = 0; use < uses_.size(); ++use) {
    const Use& u = use_states_[use];
    if (u.phase != Use::Phase::kReading && u.phase != Use::Phase::kLeased) continue;
    if (loader_.all_landed(u.slot)) continue;
    bytes += shapes_.layer(layer_).expert_bytes - loader_.landed_bytes(u.slot);
    if (bytes > kTailBytes) return true;
  }
  return false;
}

double ExpertManager::drive_bytes_per_second() const {
  const ReaderLoad load = reader_.load();
  if (load.bytes_per_second != 0.0 || load.busy_us == 0) return load.bytes_per_second;
  return static_cast<double>(load.bytes_read) * 1e6 * load.num_drives /
         static_cast<double>(load.busy_us);
}

void ExpertManager::fetch_wishes(std::int64_t now_us) {
  const double bytes_per_second = drive_bytes_per_second();
  while (static_cast<int>(ahead_.size()) < max_ahead()) {
    const std::optional<Wish> wish = prefetcher_.next_wish(
        now_us, bytes_per_second, bytes_ahead(),
        [this](ExpertId id) { return !cache_.slot_of(id).has_value() && !held_above(id); });
    if (!wish) return;
    const std::optional<SlotIdx> slot = room_for(*wish);
    if (!slot) return;
    read_ahead(wish->id, *slot, wish->read_class, wish->odds);
    state(*slot).live_guess = true;
    live_guesses_.push_back({*slot, wish->id});
  }
}

// At most this many experts are read ahead at a time: enough slots stay for what is demanded. A
// sweep has more to fetch and more time for it.
int ExpertManager::max_ahead() const {
  const int spare = (cache_.num_usable() - shapes_.max_top_k()) / 2;
  const int wanted = sweep_ ? std::max(prefetcher_.options().max_in_flight, spare / 2)
                            : prefetcher_.options().max_in_flight;
  return std::min(wanted, spare);
}

std::int64_t ExpertManager::bytes_ahead() const {
  std::int64_t bytes = 0;
  for (const SlotIdx slot : ahead_) {
    if (!state(slot).warm)
      bytes += shapes_.layer(state(slot).layer).expert_bytes - loader_.landed_bytes(slot);
  }
  return bytes;
}

// A slot for a guess: a free one, one that is cold, or one whose expert is worth less.
std::optional<SlotIdx> ExpertManager::room_for(const Wish& wish) {
  if (live_guesses_.size() == live_guesses_.capacity()) return std::nullopt;
  if (cache_.num_free() == 0) {
    const std::optional<SlotIdx> victim = cache_.victim();
    if (!victim) return std::nullopt;
    const bool cold = cache_.standing(*victim) == Standing::kCold;
    if (!cold && (state(*victim).live_guess ||
                  !prefetcher_.outweighs(wish, cache_.expert_in(*victim).value())))
      return std::nullopt;
  }
  return cache_.reserve(wish.id);
}

// Within a class the likelier goes first, and whole: half an expert is not there in time.
void ExpertManager::read_ahead(ExpertId id, SlotIdx slot, ReadClass read_class, float odds) {
  assign(slot, id);
  state(slot).errand = Errand::kAhead;
  ahead_.push_back(slot);
  loader_.fetch(slot, read_class, odds, odds);
}

void ExpertManager::warm_up(std::vector<ExpertId> experts) {
  warm_ = std::move(experts);
  next_warm_ = 0;
  pump();
}

int ExpertManager::num_warming() const {
  return static_cast<int>(
      std::count_if(ahead_.begin(), ahead_.end(), [&](SlotIdx slot) { return state(slot).warm; }));
}

bool ExpertManager::warming_up() const {
  return num_warming() > 0 || (next_warm_ < warm_.size() && cache_.num_free() > 0);
}

void ExpertManager::fetch_warm() {
  const PrefetchOptions& options = prefetcher_.options();
  if (!options.enabled || !options.warm_up) {
    next_warm_ = warm_.size();
    return;
  }
  for (int room = kMaxWarming - num_warming(); room > 0 && next_warm_ < warm_.size();) {
    const ExpertId id = warm_[next_warm_];
    if (!cache_.slot_of(id) && !held_above(id)) {
      const std::optional<SlotIdx> slot = cache_.reserve_free(id);
      if (!slot) return;
      // In the order of the list, which is without end as far as a float can tell.
      read_ahead(id, *slot, ReadClass::kWarm, -static_cast<float>(next_warm_));
      state(*slot).warm = true;
      --room;
    }
    ++next_warm_;
  }
}

// The turn of `layer` has come: what was guessed and is not wanted makes room.
void ExpertManager::expire_guesses(int layer) {
  const auto expired = [&](const LiveGuess& guess) {
    if (guess.id.layer != layer) return false;
    SlotState& s = state(guess.slot);
    if (!s.live_guess || cache_.expert_in(guess.slot) != guess.id) return true;
    s.live_guess = false;
    const auto enough =
        static_cast<std::int64_t>(kMostly * static_cast<double>(shapes_.layer(layer).expert_bytes));
    if (s.errand == Errand::kNone) {
      cache_.rank(guess.slot, Standing::kCold);
    } else if (loader_.landed_bytes(guess.slot) >= enough) {
      loader_.fetch(guess.slot, ReadClass::kWarm, 1.0f, 0.0f);
    } else {
      drain(guess.slot);
    }
    return true;
  };
  std::erase_if(live_guesses_, expired);
}

// Somebody needs a slot and all are leased or on their way.
void ExpertManager::give_up_reading_ahead() {
  while (!ahead_.empty()) {
    if (state(ahead_.back()).warm) next_warm_ = 0;  // to be looked at again
    drain(ahead_.back());
  }
}

}  // namespace stoker
