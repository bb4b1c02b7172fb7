// An ExpertManager over patterns of bytes in memory, below a device's slots if wanted, and a caller
// that computes late, checks what it reads, and keeps the books that the manager's counters must
// equal.
#pragma once

#include <gtest/gtest.h>

#include <deque>
#include <map>
#include <random>
#include <set>
#include <vector>

#include "prefetch/expert_manager.h"
#include "prefetch/tiered_experts.h"
#include "tests/support/block_source.h"
#include "tests/support/device_backend.h"
#include "tests/support/memory_reader.h"

namespace stoker::test {

struct RigOptions {
  unsigned seed = 1;
  int num_layers = 3;  // MoE layers, after one dense
  int num_experts = 16;
  int top_k = 4;
  int num_slots = 20;
  int num_gate_up = 3, num_down = 2;
  int num_replicas = 1;
  MemoryReaderOptions reader;
  ExpertManagerOptions manager;
  // Devices that run the dense parts of layers in turn, beside the host.
  bool tiers = false;
  int num_devices = 1;
  int device_slots = 8;  // of each
  int polls_per_copy = 2;
  TierOptions tier_options;
};

class ManagerRig {
 public:
  explicit ManagerRig(const RigOptions& options)
      : options_(options),
        random_(options.seed),
        source_(options.num_gate_up, options.num_down, options.num_replicas),
        arena_(options.num_slots, source_.expert_bytes(0)),
        reader_(source_, options.reader) {
    auto manager =
        ExpertManager::create(layers(), source_, reader_, arena_, clock_, options.manager).value();
    manager_ = manager.get();
    if (options.tiers) {
      put_below_devices(std::move(manager));
    } else {
      provider_ = std::move(manager);
    }
  }

  std::vector<ExpertLayer> layers() const {
    std::vector<ExpertLayer> layers;
    for (int layer = 1; layer <= options_.num_layers; ++layer)
      layers.push_back({layer, options_.num_experts, options_.top_k});
    return layers;
  }

  ExpertManager& manager() { return *manager_; }
  ExpertProvider& provider() { return *provider_; }
  TieredExperts& tiers() { return *tiers_; }
  MemoryDeviceSlots& device_slots() { return *device_slots_; }  // of the first
  DeviceId home(int layer) const { return DeviceId{1 + (layer - 1) % options_.num_devices}; }
  MemoryReader& reader() { return reader_; }
  MemoryArena& arena() { return arena_; }
  ManualClock& clock() { return clock_; }
  std::mt19937& random() { return random_; }
  int pick(int n) { return static_cast<int>(random_() % static_cast<unsigned>(n)); }

  // A demand of `experts` (ascending) with `rows_of(expert)` rows each.
  const std::vector<ExpertUse>& uses(const std::set<int>& experts, int num_rows = 1,
                                     bool draft = false) {
    uses_.clear();
    rows_.resize(static_cast<std::size_t>(num_rows) + 1000);
    int slot = 0;
    for (const int expert : experts) {
      ExpertUse use;
      use.expert = expert;
      use.rows = {rows_.data(), static_cast<std::size_t>(num_rows)};
      use.num_decode_rows = num_rows;
      use.slot_begin = slot;
      use.draft = draft;
      slot += num_rows;
      uses_.push_back(use);
    }
    return uses_;
  }
  std::set<int> random_experts(int count) {
    std::set<int> experts;
    while (static_cast<int>(experts.size()) < count) experts.insert(pick(options_.num_experts));
    return experts;
  }

  // Told to the manager during the next demand.
  void hint_during_next(int layer, int lead, int num_rows, std::vector<std::int32_t> experts) {
    hints_.push_back({layer, lead, num_rows, std::move(experts)});
  }

  // Runs a demand to its end as a forward pass does, with parts computed at random times. Gives up
  // after `give_up_after` parts.
  Status run(int layer, const std::vector<ExpertUse>& uses, int give_up_after = INT_MAX) {
    ExpertSetPtr set = provider_->demand(layer, uses).value();
    num_demanded_ += static_cast<std::int64_t>(uses.size());
    begin(layer, uses);
    for (const Hint& hint : hints_) {
      const int num_ranked = static_cast<int>(hint.experts.size()) / hint.num_rows;
      provider_->hint({layer, hint.layer, hint.lead, hint.num_rows, num_ranked, hint.experts});
    }
    hints_.clear();
    int idle_rounds = 0, num_taken = 0;
    while (!set->exhausted()) {
      if (num_taken >= give_up_after) break;
      clock_.advance(pick(50));
      std::vector<ExpertPart> out(static_cast<std::size_t>(1 + pick(7)));
      const std::size_t ready = set->take_ready(out);
      for (std::size_t i = 0; i < ready; ++i) take(out[i]);
      num_taken += static_cast<int>(ready);
      if (pick(2) == 0) compute(pick(4));
      if (ready > 0) {
        idle_rounds = 0;
        continue;
      }
      if (Status status = set->status(); !status.ok()) {
        compute_all();
        return status;
      }
      if (set->waits_for_slots()) {
        compute_all();
        set->retire_taken();
      } else {
        compute(1);
        provider_->wait(std::chrono::microseconds(100));
      }
      if (++idle_rounds > 10000) {
        ADD_FAILURE() << "hangs in layer " << layer << ": " << reader_.num_unfinished()
                      << " reads unfinished, " << passed_.size() << " parts of " << uses.size()
                      << " uses passed, " << pending_.size() << " pending";
        compute_all();
        return Error(ErrorCode::kCancelled, "hangs");
      }
    }
    compute_all();
    if (num_taken >= give_up_after) return Error(ErrorCode::kCancelled, "given up");
    for (std::size_t use = 0; use < uses.size(); ++use) {
      EXPECT_EQ(passed_.count({static_cast<int>(use), 0}), 1u);
    }
    EXPECT_EQ(passed_.size(), uses.size() * static_cast<std::size_t>(num_blocks()));
    return {};
  }

  // Where each use of the last demand was computed.
  const std::map<int, DeviceId>& sites() const { return site_of_; }

  // A test demanded behind run()'s back.
  void note_demanded(std::int64_t num_experts) { num_demanded_ += num_experts; }

  // demanded = hit + late + miss, and every byte that was read is accounted for.
  void expect_consistent_counters() {
    LayerCounters total;
    for (const ExpertLayer& layer : layers()) total += provider_->counters(layer.layer);
    EXPECT_EQ(total.hit + total.late + total.miss, num_demanded_);
    const std::int64_t read = reader_.load().bytes_read;
    EXPECT_EQ(manager_->bytes_read(), read);
    EXPECT_EQ(total.demand_bytes + total.prefetch_used_bytes + total.prefetch_wasted_bytes +
                  manager_->prefetched_unused_bytes(),
              read);
  }
  LayerCounters total() const {
    LayerCounters total;
    for (const ExpertLayer& layer : layers()) total += provider_->counters(layer.layer);
    return total;
  }

  // Lets everything that is under way land.
  void settle() {
    for (int i = 0; i < 10000 && reader_.num_unfinished() > 0; ++i) manager_->pump();
    EXPECT_EQ(reader_.num_unfinished(), 0u);
  }

 private:
  using Place = std::pair<int, int>;  // use, block
  struct Hint {
    int layer, lead, num_rows;
    std::vector<std::int32_t> experts;
  };

  int num_blocks() const { return options_.num_gate_up + options_.num_down; }

  void put_below_devices(std::unique_ptr<ExpertManager> manager) {
    std::vector<std::unique_ptr<DeviceSlots>> devices;
    for (int device = 1; device <= options_.num_devices; ++device) {
      auto slots =
          std::make_unique<MemoryDeviceSlots>(DeviceId{device}, options_.device_slots,
                                              source_.expert_bytes(0), options_.polls_per_copy);
      if (device == 1) device_slots_ = slots.get();
      devices.push_back(std::move(slots));
    }
    TierOptions tier_options = options_.tier_options;
    tier_options.dense_device = {home(1)};  // of the dense layer
    for (int layer = 1; layer <= options_.num_layers; ++layer)
      tier_options.dense_device.push_back(home(layer));
    auto tiers = TieredExperts::create(std::move(manager), layers(), source_, std::move(devices),
                                       some_costs(options_.num_devices), tier_options)
                     .value();
    tiers_ = tiers.get();
    provider_ = std::move(tiers);
  }

  void begin(int layer, const std::vector<ExpertUse>& uses) {
    layer_ = layer;
    current_ = uses;
    passed_.clear();
    site_of_.clear();
    EXPECT_TRUE(pending_.empty());
  }

  void take(const ExpertPart& part) {
    for (int i = 0; i < part.num_blocks; ++i) take_block(part.block_at(i));
  }
  void take_block(const ExpertPart& part) {
    const int block = part.row_begin;
    EXPECT_EQ(part.half == ExpertHalf::kGateUp, block < options_.num_gate_up);
    EXPECT_FALSE(passed_.contains({part.use, block})) << "a part came twice";
    for (const ExpertPart& other : pending_)
      EXPECT_FALSE(other.use == part.use && other.row_begin == block) << "a part came twice";
    if (part.half == ExpertHalf::kDown) {
      for (int gate_up = 0; gate_up < options_.num_gate_up; ++gate_up) {
        bool unguarded_before = false;
        for (const ExpertPart& other : pending_) {
          unguarded_before |=
              other.use == part.use && other.row_begin == gate_up && other.guard == nullptr;
        }
        EXPECT_TRUE(passed_.contains({part.use, gate_up}) || unguarded_before)
            << "a down part before a gate/up part of its expert";
      }
    }
    pending_.push_back(part);
  }

  void compute(int count) {
    for (; count > 0 && !pending_.empty(); --count) {
      const ExpertPart part = pending_.front();
      pending_.pop_front();
      if (!part.passes_guard()) continue;
      const QuantView& view = part.half == ExpertHalf::kGateUp ? part.gate : part.down;
      const ExpertId id{layer_, current_[part.use].expert};
      EXPECT_TRUE(
          BlockSource::holds(id, part.row_begin, static_cast<const std::byte*>(view.payload)))
          << "wrong bytes in block " << part.row_begin << " of expert " << id.expert;
      EXPECT_TRUE(passed_.insert({part.use, part.row_begin}).second);
      const auto [site, first] = site_of_.insert({part.use, part.site});
      EXPECT_EQ(site->second, part.site) << "an expert in two places";
    }
  }
  void compute_all() { compute(INT_MAX); }

  RigOptions options_;
  std::mt19937 random_;
  BlockSource source_;
  ManualClock clock_;
  MemoryArena arena_;
  MemoryReader reader_;
  std::unique_ptr<ExpertProvider> provider_;
  ExpertManager* manager_ = nullptr;
  TieredExperts* tiers_ = nullptr;
  MemoryDeviceSlots* device_slots_ = nullptr;
  std::vector<Hint> hints_;
  std::vector<ExpertUse> uses_, current_;
  std::vector<std::int32_t> rows_;
  int layer_ = 0;
  std::deque<ExpertPart> pending_;  // taken, not computed yet
  std::set<Place> passed_;
  std::map<int, DeviceId> site_of_;  // by use
  std::int64_t num_demanded_ = 0;
};

}  // namespace stoker::test
