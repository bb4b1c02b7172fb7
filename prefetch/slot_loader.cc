#include "prefetch/slot_loader.h"

#include <algorithm>
#include <utility>

namespace stoker {
namespace {

constexpr std::size_t kReapBatch = 256;
constexpr std::size_t kSubmitBatch = 256;
constexpr int kMaxNotices = 16;  // a drive that dies is not said block by block

}  // namespace

SlotLoader::SlotLoader(const ExpertShapes& shapes, const ExpertSource& source, ExpertReader& reader,
                       const SlotArena& arena, DeviceId device)
    : shapes_(shapes),
      source_(source),
      reader_(reader),
      arena_(arena),
      device_(device),
      max_blocks_(shapes.max_blocks()),
      slots_(static_cast<std::size_t>(arena.num_slots())),
      blocks_(slots_.size() * static_cast<std::size_t>(max_blocks_)),
      done_(kReapBatch),
      retries_(static_cast<std::size_t>(shapes.num_layers())) {
  const int max_lent = std::min(arena.num_slots(), shapes.max_experts()) * max_blocks_;
  lent_.reserve(static_cast<std::size_t>(max_lent));
  queued_.reserve(kSubmitBatch);
}

SlotLoader::~SlotLoader() {
  for (std::size_t slot = 0; slot < slots_.size(); ++slot) {
    if (slots_[slot].num_reading > 0) cancel(static_cast<SlotIdx>(slot));
  }
}

std::byte* SlotLoader::address(SlotIdx slot, int block) const {
  std::byte* const base = arena_.slot(slot);
  if (base == nullptr) return nullptr;  // a modelled arena
  return base + shape(slot).blocks[block].offset;
}

void SlotLoader::assign(SlotIdx slot, ExpertId id) {
  Slot& s = slots_[at(slot)];
  CHECK(s.num_reading == 0, "slot {} takes expert {} of layer {} while {} reads are under way",
        slot, id.expert, id.layer, s.num_reading);
  s = {.id = id};
  for (int b = 0; b < shape(slot).num_blocks(); ++b) {
    Block& state = block(slot, b);
    state.state.store(State::kAbsent, std::memory_order_relaxed);
    state.num_failures = 0;
    if (!story_.empty()) story_.erase(tag(slot, b));
  }
}

float SlotLoader::priority(const Slot& slot, int block) const {
  return block < shapes_.layer(slot.id.layer).num_gate_up ? slot.gate_up_priority
                                                          : slot.down_priority;
}

// Which copy: after n failures the same once more, then one after the other.
void SlotLoader::queue_read(SlotIdx slot, int b) {
  Slot& s = slots_[at(slot)];
  Block& state = block(slot, b);
  int replica = kAnyReplica;
  if (state.num_failures > 0) {
    replica = (state.first_replica + state.num_failures - 1) % source_.num_replicas(s.id);
  }
  state.state.store(State::kReading, std::memory_order_relaxed);
  ++s.num_reading;
  ++num_reading_;
  if (queued_.size() == queued_.capacity()) submit();
  queued_.push_back({.tag = tag(slot, b),
                     .id = s.id,
                     .block = b,
                     .replica = replica,
                     .dst = address(slot, b),
                     .read_class = s.read_class,
                     .priority = priority(s, b)});
}

void SlotLoader::submit() {
  if (!queued_.empty()) reader_.submit(queued_);
  queued_.clear();
}

void SlotLoader::fetch(SlotIdx slot, ReadClass read_class, float gate_up_priority,
                       float down_priority) {
  Slot& s = slots_[at(slot)];
  s.read_class = read_class;
  s.gate_up_priority = gate_up_priority;
  s.down_priority = down_priority;
  s.wanted = true;
  for (int b = 0; b < shape(slot).num_blocks(); ++b) {
    Block& state = block(slot, b);
    const State now = state.state.load(std::memory_order_relaxed);
    // Asked for anew: what failed for an earlier demand does not count.
    if (state.num_failures > 0 && now != State::kLent && now != State::kBad) {
      state.num_failures = 0;
      story_.erase(tag(slot, b));
    }
    switch (now) {
      case State::kUnreadable:
      case State::kAbsent:
        queue_read(slot, b);
        break;
      case State::kReading:
        reader_.promote(tag(slot, b), read_class, priority(s, b));
        break;
      default:
        break;
    }
  }
}

void SlotLoader::cancel(SlotIdx slot) {
  submit();  // the reader can only take back what it has
  slots_[at(slot)].wanted = false;
  for (int b = 0; b < shape(slot).num_blocks(); ++b) {
    if (block(slot, b).state.load(std::memory_order_relaxed) == State::kReading)
      reader_.cancel(tag(slot, b));
  }
}

void SlotLoader::poll(EventSink sink) {
  while (const std::size_t num_done = reader_.reap(done_)) {
    for (std::size_t i = 0; i < num_done; ++i) take_in(done_[i], sink);
  }
  collect_checks(sink);
  submit();
}

void SlotLoader::take_in(BlockDone& done, EventSink sink) {
  const auto slot = static_cast<SlotIdx>(done.tag / static_cast<std::uint32_t>(max_blocks_));
  const int b = static_cast<int>(done.tag % static_cast<std::uint32_t>(max_blocks_));
  Slot& s = slots_[at(slot)];
  Block& state = block(slot, b);
  CHECK(s.num_reading > 0 && state.state.load(std::memory_order_relaxed) == State::kReading,
        "block {} of slot {} came without having been asked for", b, slot);
  --s.num_reading;
  --num_reading_;
  state.state.store(State::kAbsent, std::memory_order_relaxed);
  if (state.num_failures > 0 && done.outcome != ReadOutcome::kCancelled)
    ++retries_[s.id.layer].retried;
  switch (done.outcome) {
    case ReadOutcome::kRead: {
      const std::int64_t bytes = shape(slot).blocks[b].bytes;
      state.replica = static_cast<std::int8_t>(done.replica);
      state.state.store(State::kLanded, std::memory_order_relaxed);
      ++s.num_usable;
      s.landed_bytes += bytes;
      bytes_read_ += bytes;
      sink({BlockEvent::Kind::kLanded, slot, b});
      break;
    }
    case ReadOutcome::kCancelled:
      if (s.wanted) {
        queue_read(slot, b);  // wanted again after it was taken back
      } else {
        sink({BlockEvent::Kind::kReturned, slot, b});
      }
      break;
    case ReadOutcome::kFailed: {
      state.replica = static_cast<std::int8_t>(done.replica);
      Error error = done.status.ok() ? Error(ErrorCode::kIo, "the read failed")
                                     : std::move(done.status).error();
      fail(slot, b, std::move(error), sink);
      break;
    }
  }
}

void SlotLoader::collect_checks(EventSink sink) {
  const std::uint32_t num_checks = num_checks_.load(std::memory_order_acquire);
  if (num_checks == num_checks_seen_) return;
  num_checks_seen_ = num_checks;
  for (std::size_t i = 0; i < lent_.size();) {
    const std::uint32_t ticket = lent_[i];
    const State found = blocks_[ticket].state.load(std::memory_order_acquire);
    if (found == State::kLent) {
      ++i;
      continue;
    }
    lent_[i] = lent_.back();
    lent_.pop_back();
    const auto slot = static_cast<SlotIdx>(ticket / static_cast<std::uint32_t>(max_blocks_));
    const int b = static_cast<int>(ticket % static_cast<std::uint32_t>(max_blocks_));
    if (found == State::kChecked) {
      if (blocks_[ticket].num_failures > 0) note_repair(slot, b);
      sink({BlockEvent::Kind::kChecked, slot, b});
    } else {
      lose(slot, b);
      sink({BlockEvent::Kind::kAgain, slot, b});
      fail(slot, b, fault_of(ticket), sink);
    }
  }
}

// A block that had landed turned out bad.
void SlotLoader::lose(SlotIdx slot, int b) {
  Slot& s = slots_[at(slot)];
  --s.num_usable;
  s.landed_bytes -= shape(slot).blocks[b].bytes;
  block(slot, b).state.store(State::kAbsent, std::memory_order_relaxed);
}

// The next rung of the ladder.
void SlotLoader::fail(SlotIdx slot, int b, const Error& error, EventSink sink) {
  const Slot& s = slots_[at(slot)];
  Block& state = block(slot, b);
  if (state.num_failures++ == 0) state.first_replica = state.replica;
  story_.try_emplace(tag(slot, b), error);
  if (state.num_failures > source_.num_replicas(s.id)) {
    state.state.store(State::kUnreadable, std::memory_order_relaxed);
    sink({BlockEvent::Kind::kUnreadable, slot, b});
  } else if (s.wanted) {
    queue_read(slot, b);
  } else {
    sink({BlockEvent::Kind::kReturned, slot, b});
  }
}

void SlotLoader::note_repair(SlotIdx slot, int b) {
  Block& state = block(slot, b);
  const ExpertId id = slots_[at(slot)].id;
  if (state.replica != state.first_replica) {
    ++retries_[id.layer].repaired;
    if (num_notices_ < kMaxNotices) {
      notices_.push_back(fmt::format(
          "expert {} of layer {} was repaired from another copy: {}{}", id.expert, id.layer,
          story_.at(tag(slot, b)).message(),
          ++num_notices_ == kMaxNotices ? " (further repairs are counted, not said)" : ""));
    }
  }
  state.num_failures = 0;
  story_.erase(tag(slot, b));
}

ExpertPart SlotLoader::lend(SlotIdx slot, int b) {
  Block& state = block(slot, b);
  ExpertPart part = source_.part(slots_[at(slot)].id.layer, b, address(slot, b), device_);
  part.block = b;
  const State now = state.state.load(std::memory_order_relaxed);
  CHECK(now == State::kLanded || now == State::kChecked, "block {} of slot {} has not landed", b,
        slot);
  if (now == State::kLanded) {
    part.guard = this;
    part.ticket = tag(slot, b);
    lent_.push_back(part.ticket);
    state.state.store(State::kLent, std::memory_order_release);
  }
  return part;
}

void SlotLoader::take_back_lent() {
  for (const std::uint32_t ticket : lent_) {
    const auto slot = static_cast<SlotIdx>(ticket / static_cast<std::uint32_t>(max_blocks_));
    const int b = static_cast<int>(ticket % static_cast<std::uint32_t>(max_blocks_));
    std::atomic<State>& state = blocks_[ticket].state;
    switch (state.load(std::memory_order_acquire)) {
      case State::kLent:
        state.store(State::kLanded, std::memory_order_relaxed);
        break;
      case State::kChecked:
        if (blocks_[ticket].num_failures > 0) note_repair(slot, b);
        break;
      case State::kBad:
        lose(slot, b);
        (void)fault_of(ticket);
        break;
      default:
        CHECK(false, "block {} of slot {} was lent", b, slot);
    }
  }
  lent_.clear();
}

bool SlotLoader::check(std::uint32_t ticket) {
  Block& state = blocks_[ticket];
  const auto slot = static_cast<SlotIdx>(ticket / static_cast<std::uint32_t>(max_blocks_));
  const int b = static_cast<int>(ticket % static_cast<std::uint32_t>(max_blocks_));
  CHECK(state.state.load(std::memory_order_acquire) == State::kLent,
        "block {} of slot {} is checked and was not lent", b, slot);
  Status landed = source_.land(slots_[at(slot)].id, b, state.replica, address(slot, b));
  const bool good = landed.ok();
  if (!good) {
    const std::lock_guard lock(faults_mutex_);
    faults_.push_back({ticket, std::move(landed).error()});
  }
  state.state.store(good ? State::kChecked : State::kBad, std::memory_order_release);
  num_checks_.fetch_add(1, std::memory_order_release);
  return good;
}

// What check() found in the block of `ticket`.
Error SlotLoader::fault_of(std::uint32_t ticket) {
  const std::lock_guard lock(faults_mutex_);
  const auto fault = std::find_if(faults_.begin(), faults_.end(),
                                  [&](const Fault& f) { return f.ticket == ticket; });
  CHECK(fault != faults_.end(), "block of ticket {} is bad for no reason", ticket);
  Error error = std::move(fault->error);
  faults_.erase(fault);
  return error;
}

bool SlotLoader::all_checks_good() const {
  return std::all_of(lent_.begin(), lent_.end(), [&](std::uint32_t ticket) {
    return blocks_[ticket].state.load(std::memory_order_acquire) == State::kChecked;
  });
}

bool SlotLoader::usable(SlotIdx slot, int b) const {
  const State state = block(slot, b).state.load(std::memory_order_relaxed);
  return state == State::kLanded || state == State::kChecked;
}

bool SlotLoader::all_checked(SlotIdx slot) const {
  for (int b = 0; b < shape(slot).num_blocks(); ++b) {
    if (block(slot, b).state.load(std::memory_order_relaxed) != State::kChecked) return false;
  }
  return true;
}

bool SlotLoader::all_landed(SlotIdx slot) const {
  return slots_[at(slot)].num_usable == shape(slot).num_blocks();
}

Status SlotLoader::story_of(SlotIdx slot, int b) const {
  const ExpertId id = slots_[at(slot)].id;
  const Error& first = story_.at(tag(slot, b));
  const int num_copies = source_.num_replicas(id);
  return make_error(first.code(), "expert {} of layer {}: {} (read twice{})", id.expert, id.layer,
                    first.message(),
                    num_copies > 1 ? fmt::format(", and from {} other {}", num_copies - 1,
                                                 num_copies > 2 ? "copies" : "copy")
                                   : ", there is no other copy");
}

std::vector<std::string> SlotLoader::take_notices() { return std::exchange(notices_, {}); }

}  // namespace stoker
