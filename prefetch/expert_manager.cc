#include "prefetch/expert_manager.h"

#include <utility>

namespace stoker {
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
  for (const ExpertLayer& layer : layers) {
    cycle += layer.top_k;
    manager->num_experts_ += layer.num_experts;
  }
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
      site_(options.site),
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
  const std::int64_t bytes = shapes_.layer(id.layer).blocks[event.block].bytes;
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

// ---- What others ask.

std::optional<BorrowedExpert> ExpertManager::borrow(ExpertId id) {
  const std::optional<SlotIdx> slot = cache_.slot_of(id);
  if (!slot || !cache_.resident(id) || !loader_.all_checked(*slot)) return std::nullopt;
  const auto bytes = static_cast<std::size_t>(shapes_.layer(id.layer).expert_bytes);
  return BorrowedExpert{std::move(cache_.lease(id).value()), {arena_.slot(*slot), bytes}};
}

void ExpertManager::wait(std::chrono::microseconds timeout) { reader_.wait(timeout); }

LayerCounters ExpertManager::counters(int layer) const {
  if (!shapes_.has_experts(layer)) return {};
  LayerCounters result = counters_[layer];
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
