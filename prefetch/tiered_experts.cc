#include "prefetch/tiered_experts.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <iterator>
#include <utility>

namespace stoker {
namespace {

// For arrivals while the drive has not been measured.
constexpr double kAssumedBytesPerUs = 2000.0;

bool has_prefill_rows(const ExpertUse& use) {
  return static_cast<int>(use.rows.size()) > use.num_decode_rows;
}

}  // namespace

Result<std::unique_ptr<TieredExperts>> TieredExperts::create(
    std::unique_ptr<ExpertManager> ram, std::span<const ExpertLayer> layers,
    const ExpertSource& source, std::vector<std::unique_ptr<DeviceSlots>> devices,
    const ExpertCosts& costs, TierOptions options) {
  auto tiers = std::unique_ptr<TieredExperts>(
      new TieredExperts(std::move(ram), layers, source, costs, std::move(options)));
  const ExpertShapes& shapes = tiers->shapes_;
  CHECK(static_cast<int>(tiers->options_.dense_device.size()) >= shapes.num_layers(),
        "devices of {} layers, experts in {}", tiers->options_.dense_device.size(),
        shapes.num_layers());
  const ExpertGrid grid{shapes.num_layers(), shapes.max_experts()};
  for (const DeviceId home : tiers->options_.dense_device) {
    CHECK(home == kHost || number_of(home) < costs.num_devices(), "no costs of device {}",
          home.index);
  }
  for (std::unique_ptr<DeviceSlots>& slots : devices) {
    CHECK(tiers->device_of(slots->device()) < 0 && slots->device() != kHost &&
              number_of(slots->device()) < costs.num_devices(),
          "slots of device {} twice, or without costs", slots->device().index);
    CHECK(slots->slot_bytes() >= shapes.max_expert_bytes(), "slots of {} bytes for experts of {}",
          slots->slot_bytes(), shapes.max_expert_bytes());
    const int num_slots = slots->num_slots();
    ASSIGN_OR_RETURN(auto policy, make_eviction_policy(tiers->options_.policy, grid, num_slots));
    auto cache = std::make_unique<ExpertCache>(grid, num_slots, std::move(policy));
    cache->grow(num_slots);
    Device device{std::move(slots), std::move(cache), {}, false};
    device.under_way.reserve(at(tiers->options_.max_promotions));
    tiers->devices_.push_back(std::move(device));
  }
  return tiers;
}

TieredExperts::TieredExperts(std::unique_ptr<ExpertManager> ram,
                             std::span<const ExpertLayer> layers, const ExpertSource& source,
                             const ExpertCosts& costs, TierOptions options)
    : options_(std::move(options)),
      source_(source),
      shapes_(layers, source, kHost),
      costs_(costs),
      scheduler_(shapes_.max_experts()),
      ram_(std::move(ram)),
      counted_(at(shapes_.num_layers())),
      states_(at(shapes_.max_experts())),
      sites_(at(shapes_.max_experts())) {
  scheduled_.reserve(states_.size());
  experts_.reserve(states_.size());
  scheduled_devices_.reserve(at(costs_.num_devices()));
  ram_->set_upper_tier(this);
}

TieredExperts::~TieredExperts() {
  CHECK(!open_, "a set outlives its provider");
  ram_->set_upper_tier(nullptr);
  for (Device& device : devices_) device.slots.reset();  // its copies still read what is borrowed
}

int TieredExperts::device_of(DeviceId id) const {
  for (int i = 0; i < num_devices(); ++i) {
    if (devices_[at(i)].slots->device() == id) return i;
  }
  return -1;
}

bool TieredExperts::holds(ExpertId id) const {
  return home(id.layer) != kHost && std::ranges::any_of(devices_, [id](const Device& device) {
           return device.cache->resident(id);
         });
}

int TieredExperts::nth_device(int n) const {
  return (std::max(device_of(home(layer_)), 0) + n) % num_devices();
}

// ---- What a step tells.

void TieredExperts::begin_step(std::span<const TokenId> tokens) {
  poll();
  ++num_steps_;
  num_step_rows_ = static_cast<int>(tokens.size());
  ram_->begin_step(tokens);
}

void TieredExperts::note_choices(int layer, std::span<const TokenId> tokens,
                                 std::span<const std::int32_t> experts) {
  ram_->note_choices(layer, tokens, experts);
}

void TieredExperts::wait(std::chrono::microseconds timeout) { ram_->wait(timeout); }

// Rows of decode on the host: what the scheduler's idea of it is held against.
void TieredExperts::note_host_time(double us) {
  counted_[at(layer_)].host_us += static_cast<std::int64_t>(us);
  int num_experts = 0, num_rows = 0;
  for (int use = 0; use < static_cast<int>(uses_.size()); ++use) {
    const ExpertUse& u = uses_[at(use)];
    if (states_[at(use)].site != kHost || has_prefill_rows(u)) continue;
    ++num_experts;
    num_rows += static_cast<int>(u.rows.size());
  }
  costs_.observe_host(num_experts, num_rows, us);
}

void TieredExperts::note_device_time(DeviceId device, const ExpertTiming& timing) {
  const int index = number_of(device);
  costs_.observe_device(index, timing.num_experts, timing.num_rows, timing.compute_us);
  costs_.observe_upload(index, timing.upload_bytes, timing.upload_us);
}

LayerCounters TieredExperts::counters(int layer) const {
  LayerCounters result = ram_->counters(layer);
  if (shapes_.has_experts(layer)) result += counted_[at(layer)];
  return result;
}

std::vector<std::string> TieredExperts::take_notices() {
  std::vector<std::string> notices = ram_->take_notices();
  std::ranges::move(std::exchange(notices_, {}), std::back_inserter(notices));
  return notices;
}

// ---- A demand.

Result<ExpertSetPtr> TieredExperts::demand(int layer, std::span<const ExpertUse> uses) {
  CHECK(!open_, "a set of layer {} is open", layer_);
  CHECK(uses.size() <= states_.size(), "{} uses of {} experts", uses.size(), states_.size());
  poll();
  layer_ = layer;
  uses_ = uses;
  choose_sites();
  ram_set_ = ram_->demand(layer, uses).value();  // does not fail
  open_ = true;
  return ExpertSetPtr(&set_);
}

void TieredExperts::choose_sites() {
  for (Device& device : devices_) device.cache->begin_turn(layer_);
  num_held_ = next_held_ = 0;
  for (int use = 0; use < static_cast<int>(uses_.size()); ++use) {
    states_[at(use)].site = home(layer_);
    states_[at(use)].next_run = 0;
    num_held_ += lease_copy(use) ? 1 : 0;
  }
  if (home(layer_) == kHost || !options_.host_computes) return;
  if (options_.rule == TierRule::kSchedule) return schedule();
  int num_free = 0;
  for (int use = 0; use < static_cast<int>(uses_.size()); ++use) {
    if (!is_fixed(use) && rule_gives_host(use, num_free++)) states_[at(use)].site = kHost;
  }
}

// Of an expert that a device holds; there is one such device. Rows of prefill stay with the layer's
// device, which then reads the other's copy.
bool TieredExperts::lease_copy(int use) {
  Use& u = states_[at(use)];
  u.device = -1;
  if (home(layer_) == kHost) return false;
  for (int index = 0; index < num_devices(); ++index) {
    const Device& device = devices_[at(index)];
    std::optional<ExpertLease> lease = device.cache->lease(id_of(use));
    if (!lease) continue;
    u.device = index;
    u.lease = std::move(*lease);
    if (!has_prefill_rows(uses_[at(use)])) u.site = device.slots->device();
    return true;
  }
  return false;
}

// Of an expert whose place is free, the `index`th such of the demand.
bool TieredExperts::rule_gives_host(int use, int index) const {
  switch (options_.rule) {
    case TierRule::kHost:
      return true;
    case TierRule::kAlternate:
      return (uses_[at(use)].expert + num_steps_) % 2 == 0;
    case TierRule::kShare:  // spread evenly
      return std::lround((index + 1) * options_.host_share) >
             std::lround(index * options_.host_share);
    case TierRule::kSchedule:
    case TierRule::kDevice:
      break;
  }
  return false;
}

// Its place follows from the plan or from where its copy is.
bool TieredExperts::is_fixed(int use) const {
  return states_[at(use)].device >= 0 || has_prefill_rows(uses_[at(use)]);
}

void TieredExperts::schedule() {
  // 1. What is not to be decided keeps devices busy.
  const std::int64_t expert_bytes = shapes_.layer(layer_).expert_bytes;
  begin_schedule(expert_bytes);
  int num_missing = 0;
  const double measured = ram_->drive_bytes_per_second() * 1e-6;
  const double read_us =
      static_cast<double>(expert_bytes) / (measured > 0.0 ? measured : kAssumedBytesPerUs);
  for (int use = 0; use < static_cast<int>(uses_.size()); ++use) {
    const Use& u = states_[at(use)];
    const int num_rows = static_cast<int>(uses_[at(use)].rows.size());
    if (is_fixed(use)) {
      ScheduledDevice& device = scheduled_devices_[at(number_of(u.site))];
      device.busy_us += device.cost.of(num_rows);
      const bool is_there = u.device >= 0 && devices_[at(u.device)].slots->device() == u.site;
      if (!is_there) device.copy_busy_us += device.upload_us;
      continue;
    }
    const bool resident = ram_->cache().resident(id_of(use));
    scheduled_.push_back(use);
    experts_.push_back(
        {.num_rows = num_rows, .in_ram_us = resident ? 0.0 : read_us * ++num_missing});
  }
  if (experts_.empty()) return;
  // 2. The rest goes where it is done soonest.
  const std::span<ExpertSite> sites = std::span(sites_).first(experts_.size());
  scheduler_.assign(experts_, {.computes = true, .busy_us = 0.0, .cost = costs_.host()},
                    scheduled_devices_, sites);
  for (std::size_t i = 0; i < sites.size(); ++i) {
    const int device = sites[i].device;
    states_[at(scheduled_[i])].site = device == ExpertSite::kOnHost ? kHost : DeviceId{device + 1};
  }
}

// All devices, with what they have to do before any expert of the demand.
void TieredExperts::begin_schedule(std::int64_t expert_bytes) {
  scheduled_.clear();
  experts_.clear();
  scheduled_devices_.clear();
  for (int number = 0; number < costs_.num_devices(); ++number) {
    const ComputeCost& cost = costs_.device(number);
    const double upload_us = costs_.upload_us(number, expert_bytes);
    const bool is_home = number == number_of(home(layer_));
    const int with_slots = device_of(DeviceId{number + 1});
    const std::size_t num_copies = with_slots < 0 ? 0 : devices_[at(with_slots)].under_way.size();
    scheduled_devices_.push_back(
        {.busy_us =
             is_home ? options_.num_shared_experts * cost.of(num_step_rows_) : options_.travel_us,
         .copy_busy_us = upload_us * static_cast<double>(num_copies),
         .num_free_slots = static_cast<int>(uses_.size()),
         .cost = cost,
         .upload_us = upload_us});
  }
}

std::size_t TieredExperts::take_ready(std::span<ExpertPart> out) {
  const auto num_runs = static_cast<int>(shapes_.layer(layer_).runs.size());
  std::size_t taken = 0;
  for (; num_held_ > 0 && taken < out.size(); ++next_held_) {
    if (states_[at(next_held_)].device < 0) continue;
    give_out_held(next_held_, out, taken);
    if (states_[at(next_held_)].next_run < num_runs) break;
    --num_held_;
  }
  const std::size_t num_above = taken;
  taken += ram_set_->take_ready(out.subspan(taken));
  for (ExpertPart& part : out.subspan(num_above, taken - num_above)) {
    part.site = states_[at(part.use)].site;
  }
  return taken;
}

// Runs of blocks of a copy on a device, gate/up before down as they lie.
void TieredExperts::give_out_held(int use, std::span<ExpertPart> out, std::size_t& taken) {
  Use& u = states_[at(use)];
  const DeviceSlots& slots = *devices_[at(u.device)].slots;
  const ExpertShapes::Layer& shape = shapes_.layer(layer_);
  const std::byte* const bytes = slots.slot(u.lease.slot());
  while (u.next_run < static_cast<int>(shape.runs.size()) && taken < out.size()) {
    const ExpertShapes::Run& run = shape.runs[at(u.next_run++)];
    ExpertPart& part = out[taken++];
    part = source_.part(layer_, run.first_block, bytes + shape.blocks[at(run.first_block)].offset,
                        slots.device());
    part.use = use;
    part.block = run.first_block;
    part.num_blocks = run.num_blocks;
    part.stride = run.stride;
    part.site = u.site;
  }
}

void TieredExperts::release_set() {
  CHECK(open_, "a set is released twice");
  const bool complete = ram_set_->status().ok() && ram_set_->exhausted();
  ram_set_.reset();
  for (int use = 0; use < static_cast<int>(uses_.size()); ++use) {
    Use& u = states_[at(use)];
    if (u.device >= 0) {
      ++counted_[at(layer_)].device_hit;
      u.lease.release(Standing::kUsed);
    } else if (u.site != kHost) {
      ++counted_[at(layer_)].device_upload;
    }
  }
  open_ = false;
  if (complete) promote();
  uses_ = {};
}

// ---- Promotions.

void TieredExperts::poll() {
  for (Device& device : devices_) {
    auto first_under_way = device.under_way.begin();
    for (; first_under_way != device.under_way.end(); ++first_under_way) {
      if (!device.slots->done(first_under_way->ticket)) break;
      finish(device, *first_under_way);
    }
    device.under_way.erase(device.under_way.begin(), first_under_way);
  }
}

void TieredExperts::finish(Device& device, Promotion& promotion) {
  if (!device.slots->status().ok()) {
    if (!std::exchange(device.is_lost, true)) {
      notices_.push_back(fmt::format("device {} takes no more experts: {}",
                                     number_of(device.slots->device()),
                                     device.slots->status().error().message()));
    }
    device.cache->abandon(promotion.slot);
    promotion.from.lease.release(Standing::kKept);
    return;
  }
  device.cache->commit(promotion.slot, Standing::kUsed);
  promotion.from.lease.release(Standing::kCold);  // there are two copies now
  counted_[at(promotion.id.layer)].promoted_bytes +=
      static_cast<std::int64_t>(promotion.from.bytes.size());
}

// The hottest of what was computed without a copy, as far as that is worth it.
void TieredExperts::promote() {
  if (home(layer_) == kHost || !options_.promotes || (!uses_.empty() && uses_.front().draft)) {
    return;
  }
  const UsageHistory& usage = ram_->usage();
  while (num_under_way() < options_.max_promotions) {
    int hottest = -1;
    for (int use = 0; use < static_cast<int>(uses_.size()); ++use) {
      if (states_[at(use)].device >= 0 || is_promoted(id_of(use))) continue;
      if (hottest < 0 || usage.heat(id_of(use)) > usage.heat(id_of(hottest))) hottest = use;
    }
    if (hottest < 0) return;
    Device* const device = place_for(id_of(hottest));
    if (device == nullptr || !promote(*device, id_of(hottest))) return;
  }
}

int TieredExperts::num_under_way() const {
  std::size_t count = 0;
  for (const Device& device : devices_) count += device.under_way.size();
  return static_cast<int>(count);
}

bool TieredExperts::is_promoted(ExpertId id) const {
  return std::ranges::any_of(
      devices_, [id](const Device& device) { return device.cache->slot_of(id).has_value(); });
}

// A free slot before one that somebody has; in either case the layer's device before others.
TieredExperts::Device* TieredExperts::place_for(ExpertId id) {
  const UsageHistory& usage = ram_->usage();
  for (const bool free : {true, false}) {
    for (int n = 0; n < num_devices(); ++n) {
      Device& device = devices_[at(nth_device(n))];
      if (!device.slots->status().ok()) continue;
      if (free && device.cache->num_free() > 0) return &device;
      const std::optional<ExpertId> last = free ? std::nullopt : next_to_go(device);
      if (last && usage.heat(id) > options_.margin * usage.heat(*last)) return &device;
    }
  }
  return nullptr;
}

std::optional<ExpertId> TieredExperts::next_to_go(const Device& device) {
  if (device.cache->num_free() > 0) return std::nullopt;
  const std::optional<SlotIdx> victim = device.cache->victim();
  return victim ? device.cache->expert_in(*victim) : std::nullopt;
}

bool TieredExperts::promote(Device& device, ExpertId id) {
  std::optional<BorrowedExpert> borrowed = ram_->borrow(id);
  if (!borrowed) return false;
  if (const std::optional<ExpertId> last = next_to_go(device)) keep_in_ram(*last);
  const SlotIdx slot = device.cache->reserve(id).value();
  const UploadTicket ticket = device.slots->upload(slot, 0, borrowed->bytes);
  device.under_way.push_back({id, slot, std::move(*borrowed), ticket});
  return true;
}

// What a device gives up is no longer the first to go there, if it is there still.
void TieredExperts::keep_in_ram(ExpertId id) {
  std::optional<BorrowedExpert> copy = ram_->borrow(id);
  if (copy) copy->lease.release(Standing::kUsed);
}

}  // namespace stoker
