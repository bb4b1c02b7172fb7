#include "prefetch/expert_manager.h"

#include <algorithm>
#include <utility>

namespace stoker {
namespace {

// A demand of more experts than this many tokens could ask for alone is a sweep: most of them are
// passers-by that should not displace what decode keeps coming back to.
constexpr int kSweepTokens = 4;

// Of a demand, bytes per drive that may still be landing when the drive counts as idle: what is
// fetched ahead then follows without a gap.
constexpr std::int64_t kTailBytes = std::int64_t{2} << 20;

// A guess whose turn has passed is read to its end if this share of it is there.
constexpr double kMostly = 0.75;

constexpr int kMaxWarming = 4;  // experts under way

}  // namespace

std::vector<ExpertLayer> expert_layers(const ModelConfig& config) {
  std::vector<ExpertLayer> layers;
  for (const LayerSpec& spec : config.layers()) {
    if (spec.role == LayerRole::kMain && spec.ffn == FfnKind::kMoe)
      layers.push_back({spec.index, spec.router.num_experts, spec.router.top_k});
  }
  return layers;
}

// ---- Construction.

Result<std::unique_ptr<ExpertManager>> ExpertManager::create(
    std::span<const ExpertLayer> layers, const ExpertSource& source, ExpertReader& reader,
    const SlotArena& arena, const Clock& clock, const ExpertManagerOptions& options) {
  ExpertShapes shapes(layers, source, options.device);
  const int num_slots = arena.num_slots();
  CHECK(num_slots == 0 || arena.slot_bytes() >= shapes.max_expert_bytes(),
        "slots of {} bytes for experts of {}", arena.slot_bytes(), shapes.max_expert_bytes());
  if (num_slots < shapes.max_top_k()) {
    return make_error(
        ErrorCode::kResource,
        "room for {} experts, and a token needs {} of {:.1f} MiB in every layer at once: give the "
        "experts at least {:.1f} MiB (--ram)",
        num_slots, shapes.max_top_k(), static_cast<double>(shapes.max_expert_bytes()) / 0x1p20,
        static_cast<double>(shapes.max_expert_bytes() * shapes.max_top_k()) / 0x1p20);
  }
  const ExpertGrid grid{shapes.num_layers(), shapes.max_experts()};
  ASSIGN_OR_RETURN(auto policy, make_eviction_policy(options.policy, grid, num_slots));
  auto manager = std::unique_ptr<ExpertManager>(new ExpertManager(
      std::move(shapes), source, reader, arena, clock, options, std::move(policy)));
  int cycle = 0;
  for (const ExpertLayer& layer : layers) cycle += layer.top_k;
  if (num_slots < cycle) {
    manager->notices_.push_back(fmt::format(
        "room for {} experts, and one token uses {} over all layers: few will still be there for "
        "the next token",
        num_slots, cycle));
  }
  return manager;
}

ExpertManager::ExpertManager(ExpertShapes shapes, const ExpertSource& source, ExpertReader& reader,
                             const SlotArena& arena, const Clock& clock,
                             const ExpertManagerOptions& options,
                             std::unique_ptr<EvictionPolicy> policy)
    : shapes_(std::move(shapes)),
      reader_(reader),
      arena_(arena),
      clock_(clock),
      grid_{shapes_.num_layers(), shapes_.max_experts()},
      cache_(grid_, arena.num_slots(), std::move(policy)),
      loader_(shapes_, source, reader, arena, options.device),
      slots_(static_cast<std::size_t>(arena.num_slots())),
      counters_(static_cast<std::size_t>(shapes_.num_layers())),
      prefetcher_(shapes_, grid_, options.prefetch),
      usage_(grid_),
      progress_(shapes_.max_experts(), shapes_.max_blocks()),
      use_states_(static_cast<std::size_t>(shapes_.max_experts())) {
  waiting_.reserve(use_states_.size());
  by_rows_.reserve(use_states_.size());
  ahead_.reserve(slots_.size());
  live_guesses_.reserve(slots_.size());
}

ExpertManager::~ExpertManager() { CHECK(!open_, "a set outlives its provider"); }

// ---- A demand.

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
    Use& u = use_states_[static_cast<std::size_t>(use)];
    u.phase = Use::Phase::kWaiting;
    u.brought = false;
    const std::optional<SlotIdx> slot = cache_.slot_of(id_of(use));
    if (!slot) continue;
    ++(loader_.all_landed(*slot) ? count(layer).hit : count(layer).late);
    take_over(use, *slot);
  }
  // 2. The rest is read, into as many slots as there are.
  for (auto use = by_rows_.rbegin(); use != by_rows_.rend(); ++use) {
    if (use_states_[static_cast<std::size_t>(*use)].phase == Use::Phase::kWaiting)
      waiting_.push_back(*use);
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
    const std::size_t rows_a = uses_[static_cast<std::size_t>(a)].rows.size();
    const std::size_t rows_b = uses_[static_cast<std::size_t>(b)].rows.size();
    return rows_a != rows_b ? rows_a > rows_b : a < b;
  });
  for (int rank = 0; rank < static_cast<int>(by_rows_.size()); ++rank) {
    const int use = by_rows_[static_cast<std::size_t>(rank)];
    Standing& standing = use_states_[static_cast<std::size_t>(use)].standing;
    standing = Standing::kUsed;
    if (!sweep_ || rank < layer_share()) continue;
    const std::optional<SlotIdx> slot = cache_.slot_of(id_of(use));
    const bool was_used = slot && cache_.resident(id_of(use)) && state(*slot).demanded;
    standing = was_used ? Standing::kKept : Standing::kCold;
  }
}

// An expert that is there or on its way, for whatever reason, becomes this demand's.
void ExpertManager::take_over(int use, SlotIdx slot) {
  Use& u = use_states_[static_cast<std::size_t>(use)];
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
  Use& u = use_states_[static_cast<std::size_t>(use)];
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
  if (uses_[static_cast<std::size_t>(use)].draft) return false;
  if (use_states_[static_cast<std::size_t>(use)].standing != Standing::kCold) return true;
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
  Use& u = use_states_[static_cast<std::size_t>(use)];
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
    part = loader_.lend(use_states_[static_cast<std::size_t>(place->use)].slot, place->block);
    part.use = place->use;
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
    if (progress_.done(use) &&
        use_states_[static_cast<std::size_t>(use)].phase == Use::Phase::kLeased)
      retire(use);
  }
  num_retirable_ = 0;
  admit();
  loader_.submit();
}

void ExpertManager::retire(int use) {
  Use& u = use_states_[static_cast<std::size_t>(use)];
  u.phase = Use::Phase::kRetired;
  state(u.slot).errand = Errand::kNone;
  u.lease.release(u.standing);
  if (u.brought && u.standing == Standing::kCold) --num_passers_;
  // A draft takes nobody's slot, so its own experts hand theirs on.
  if (u.brought && uses_[static_cast<std::size_t>(use)].draft &&
      cache_.num_free() < static_cast<int>(waiting_.size())) {
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
  if (uses_[static_cast<std::size_t>(waiting_.back())].draft && !may_get_one)
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
    Use& u = use_states_[static_cast<std::size_t>(use)];
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

// ---- Slots and reads.

void ExpertManager::pump() {
  cache_.grow(arena_.num_usable());
  loader_.poll([this](const BlockEvent& event) { on_event(event); });
  admit();
  fetch_ahead();
  loader_.submit();
}

void ExpertManager::on_event(const BlockEvent& event) {
  const SlotState& s = state(event.slot);
  switch (event.kind) {
    case BlockEvent::Kind::kLanded:
      on_landed(event);
      break;
    case BlockEvent::Kind::kReturned:
      break;
    case BlockEvent::Kind::kChecked:
      pass(s.use, event.block);
      break;
    case BlockEvent::Kind::kAgain:
      progress_.failed(s.use, event.block);
      break;
    case BlockEvent::Kind::kUnreadable:
      if (s.errand == Errand::kDemand && !error_)
        error_ = loader_.story_of(event.slot, event.block).error();
      if (s.errand == Errand::kAhead) drain(event.slot);  // who demands it will hear of it
      break;
  }
  if (s.errand == Errand::kDraining && loader_.quiet(event.slot)) settle(event.slot);
}

void ExpertManager::on_landed(const BlockEvent& event) {
  SlotState& s = state(event.slot);
  const ExpertId id = *cache_.expert_in(event.slot);
  const std::int64_t bytes =
      shapes_.layer(id.layer).blocks[static_cast<std::size_t>(event.block)].bytes;
  (s.demanded ? count(id.layer).demand_bytes : s.guessed_bytes) += bytes;
  if (s.errand == Errand::kDemand) {
    progress_.landed(s.use, event.block);
    commit_if_landed(s.use);
  } else if (s.errand == Errand::kAhead && loader_.all_landed(event.slot)) {
    std::erase(ahead_, event.slot);
    s.errand = Errand::kNone;
    cache_.commit(event.slot, s.live_guess || s.warm ? Standing::kGuessed : Standing::kCold);
  }
}

// A slot that was reserved for `id`: whoever sat there has gone.
void ExpertManager::assign(SlotIdx slot, ExpertId id) {
  SlotState& s = state(slot);
  CHECK(s.errand == Errand::kNone, "slot {} is busy", slot);
  count_as_wasted(slot);
  s.demanded = s.live_guess = s.warm = false;
  s.layer = id.layer;
  loader_.assign(slot, id);
}

void ExpertManager::count_as_wasted(SlotIdx slot) {
  SlotState& s = state(slot);
  count(s.layer).prefetch_wasted_bytes += std::exchange(s.guessed_bytes, 0);
}

// Gives up what is on its way to a slot.
void ExpertManager::drain(SlotIdx slot) {
  SlotState& s = state(slot);
  if (s.errand == Errand::kAhead) std::erase(ahead_, slot);
  s.errand = Errand::kDraining;
  s.live_guess = false;
  loader_.cancel(slot);
  if (loader_.quiet(slot)) settle(slot);
}

// No read of a given-up slot is under way any more: its expert is there, or it is not.
void ExpertManager::settle(SlotIdx slot) {
  SlotState& s = state(slot);
  s.errand = Errand::kNone;
  const bool complete = loader_.all_landed(slot);
  if (s.lease) {
    s.lease.release(Standing::kUsed);
    if (!complete) cache_.evict(slot);
  } else if (complete) {
    cache_.commit(slot, s.demanded ? Standing::kUsed : Standing::kCold);
  } else {
    count_as_wasted(slot);
    cache_.abandon(slot);
  }
}

// ---- Reads on speculation.

void ExpertManager::hint(const LookAhead& guesses) {
  prefetcher_.look_ahead(guesses, [this](ExpertId id) { return would_miss(id); });
  fetch_ahead();
  loader_.submit();
}

// Whether a demand for `id` would be a miss but for guesses.
bool ExpertManager::would_miss(ExpertId id) const {
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
  const ReaderLoad load = reader_.load();
  if (load.queued_demand_bytes > 0) return;
  fetch_wishes(load, now_us);
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

void ExpertManager::fetch_wishes(const ReaderLoad& load, std::int64_t now_us) {
  double bytes_per_second = load.bytes_per_second;
  if (bytes_per_second == 0.0 && load.busy_us > 0) {
    bytes_per_second = static_cast<double>(load.bytes_read) * 1e6 * load.num_drives /
                       static_cast<double>(load.busy_us);
  }
  while (static_cast<int>(ahead_.size()) < max_ahead()) {
    const std::optional<Wish> wish =
        prefetcher_.next_wish(now_us, bytes_per_second, bytes_ahead(),
                              [this](ExpertId id) { return !cache_.slot_of(id).has_value(); });
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

// Within a class the likelier goes first; gate/up blocks of all go before down blocks.
void ExpertManager::read_ahead(ExpertId id, SlotIdx slot, ReadClass read_class, float odds) {
  assign(slot, id);
  state(slot).errand = Errand::kAhead;
  ahead_.push_back(slot);
  loader_.fetch(slot, read_class, 1.0f + odds, odds);
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
    if (!cache_.slot_of(id)) {
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
  while (!ahead_.empty()) drain(ahead_.back());
}

// ---- What others ask.

void ExpertManager::wait(std::chrono::microseconds timeout) { reader_.wait(timeout); }

LayerCounters ExpertManager::counters(int layer) const {
  if (!shapes_.has_experts(layer)) return {};
  LayerCounters result = counters_[static_cast<std::size_t>(layer)];
  const RetryCounts retries = loader_.retries(layer);
  result.retried_blocks = retries.retried;
  result.repaired_blocks = retries.repaired;
  return result;
}

std::vector<std::string> ExpertManager::take_notices() {
  std::vector<std::string> notices = std::exchange(notices_, {});
  for (std::string& notice : loader_.take_notices()) notices.push_back(std::move(notice));
  return notices;
}

std::int64_t ExpertManager::prefetched_unused_bytes() const {
  std::int64_t bytes = 0;
  for (const SlotState& slot : slots_) bytes += slot.guessed_bytes;
  return bytes;
}

}  // namespace stoker
