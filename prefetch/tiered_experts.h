// TieredExperts: the ExpertProvider of a machine with devices. Experts are paged into RAM by an
// ExpertManager; the hottest have copies in slots of devices, which are caches of their own
// (ExpertCache over DeviceSlots). For every expert of a demand it says which backend computes it:
//
//   rows of prefill        the device that runs the layer's dense part, whatever lies where: their
//                          arithmetic differs between devices, so their place is fixed by the plan
//   a device has a copy    that device, be it the layer's or another
//   else                   the host, or a device through a passing upload, as the Scheduler finds
//                          (TierRule)
//
// After a demand experts that are in RAM and were computed without a copy are *promoted*, bounded
// in number and in the background: into a free slot, of the layer's device or else of another, for
// the way of the activations there takes a tenth of an upload; or, where none is free, over what is
// cooler by a margin, on the layer's device or else on another. One device has a copy at most. The
// copy in RAM is then the next to go. A device's victim is forgotten there, and no longer the next
// to go in RAM.
//
// The driver thread owns it; nothing blocks but wait() and destruction. After construction the path
// of a token allocates nothing.
#pragma once

#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "core/base/clock.h"
#include "core/interface/device_slots.h"
#include "core/interface/expert_provider.h"
#include "core/runtime/expert_costs.h"
#include "core/runtime/scheduler.h"
#include "prefetch/expert_manager.h"

namespace stoker {

// How experts without a copy on a device are given out (decode and verify).
enum class TierRule : std::uint8_t {
  kSchedule,   // the Scheduler: least makespan
  kHost,       // all to the host
  kDevice,     // all to the layer's device
  kAlternate,  // one here, one there, differently from step to step: for tests
  kShare,      // a fixed share to the host: what the scheduler is held against
};

struct TierOptions {
  TierRule rule = TierRule::kSchedule;
  double host_share = 0.5;             // of kShare
  std::vector<DeviceId> dense_device;  // by layer of the layer table: that runs its dense part
  bool host_computes = true;           // there is a backend of the host
  // Of every layer, as large as routed ones: the layer's device computes them first.
  int num_shared_experts = 0;
  // Of a token's activations to a device that does not run the layer, and back: 28 KB through host
  // memory. Assumed, not measured.
  double travel_us = 40.0;
  bool promotes = true;
  double margin = 1.25;              // of heat, over what has to go for it
  int max_promotions = 2;            // under way at a time: each keeps a slot of RAM
  std::string_view policy = "lrfu";  // of the devices' caches
};

class TieredExperts final : public ExpertProvider, private UpperTier {
 public:
  // `source` and `clock` outlive it. Slots hold an expert of any layer; at most one entry per
  // device. `costs` has all devices. Errors: an unknown policy.
  static Result<std::unique_ptr<TieredExperts>> create(
      std::unique_ptr<ExpertManager> ram, std::span<const ExpertLayer> layers,
      const ExpertSource& source, std::vector<std::unique_ptr<DeviceSlots>> devices,
      const ExpertCosts& costs, TierOptions options);
  ~TieredExperts() override;

  Result<ExpertSetPtr> demand(int layer, std::span<const ExpertUse> uses) override;
  void begin_step(std::span<const TokenId> tokens) override;
  void note_choices(int layer, std::span<const TokenId> tokens,
                    std::span<const std::int32_t> experts) override;
  int num_ranked_guesses() const override { return ram_->num_ranked_guesses(); }
  void hint(const LookAhead& guesses) override { ram_->hint(guesses); }
  void note_host_time(double us) override;
  void note_device_time(DeviceId device, const ExpertTiming& timing) override;
  void wait(std::chrono::microseconds timeout) override;
  LayerCounters counters(int layer) const override;

  // Sentences for the person who watches, each once; empty most of the time.
  std::vector<std::string> take_notices();

  void set_rule(TierRule rule, double host_share = 0.5) {
    options_.rule = rule;
    options_.host_share = host_share;
  }
  void set_promotes(bool promotes) { options_.promotes = promotes; }
  const ExpertCache& cache(int device) const { return *devices_[at(device)].cache; }
  int num_devices() const { return static_cast<int>(devices_.size()); }
  ExpertManager& ram() { return *ram_; }
  const ExpertCosts& costs() const { return costs_; }

 private:
  struct Promotion {
    ExpertId id;
    SlotIdx slot = 0;
    BorrowedExpert from;
    UploadTicket ticket = 0;
  };
  struct Device {
    std::unique_ptr<DeviceSlots> slots;
    std::unique_ptr<ExpertCache> cache;
    std::vector<Promotion> under_way;  // oldest first
    bool is_lost = false;              // it was said
  };
  // A use of the open set.
  struct Use {
    DeviceId site = kHost;
    int device = -1;    // whose copy it is computed from; -1: none
    ExpertLease lease;  // of that copy
    int next_run = 0;   // of its blocks, to be given out
  };

  class Set final : public ExpertSet {
   public:
    explicit Set(TieredExperts& tiers) : tiers_(tiers) {}
    std::size_t take_ready(std::span<ExpertPart> out) override { return tiers_.take_ready(out); }
    bool exhausted() const override {
      return tiers_.num_held_ == 0 && tiers_.ram_set_->exhausted();
    }
    bool waits_for_slots() const override { return tiers_.ram_set_->waits_for_slots(); }
    void retire_taken() override { tiers_.ram_set_->retire_taken(); }
    Status status() const override { return tiers_.ram_set_->status(); }

   private:
    void release() override { tiers_.release_set(); }
    TieredExperts& tiers_;
  };

  TieredExperts(std::unique_ptr<ExpertManager> ram, std::span<const ExpertLayer> layers,
                const ExpertSource& source, const ExpertCosts& costs, TierOptions options);

  // UpperTier.
  bool holds(ExpertId id) const override;

  static std::size_t at(int index) { return static_cast<std::size_t>(index); }
  static int number_of(DeviceId id) { return id.index - 1; }  // as ExpertCosts counts them
  ExpertId id_of(int use) const { return {layer_, uses_[at(use)].expert}; }
  DeviceId home(int layer) const { return options_.dense_device[at(layer)]; }
  int device_of(DeviceId id) const;  // index into devices_; -1: it has no slots
  int nth_device(int n) const;       // of devices_, beginning with the layer's

  void choose_sites();
  bool lease_copy(int use);
  void schedule();
  void begin_schedule(std::int64_t expert_bytes);
  bool is_fixed(int use) const;
  bool rule_gives_host(int use, int index) const;
  std::size_t take_ready(std::span<ExpertPart> out);
  void give_out_held(int use, std::span<ExpertPart> out, std::size_t& taken);
  void release_set();

  void poll();
  void finish(Device& device, Promotion& promotion);
  void promote();
  int num_under_way() const;
  bool is_promoted(ExpertId id) const;
  Device* place_for(ExpertId id);
  // What gives way to the next promotion; nothing while a slot is free or if all are in use.
  static std::optional<ExpertId> next_to_go(const Device& device);
  bool promote(Device& device, ExpertId id);
  void keep_in_ram(ExpertId id);

  TierOptions options_;
  const ExpertSource& source_;
  ExpertShapes shapes_;
  ExpertCosts costs_;
  Scheduler scheduler_;
  std::unique_ptr<ExpertManager> ram_;
  std::vector<Device> devices_;
  std::vector<LayerCounters> counted_;  // by layer; what the devices did
  std::vector<std::string> notices_;
  std::int64_t num_steps_ = 0;
  int num_step_rows_ = 0;

  // The open set. `uses_` is the caller's.
  Set set_{*this};
  bool open_ = false;
  ExpertSetPtr ram_set_;
  int layer_ = 0;
  std::span<const ExpertUse> uses_;
  std::vector<Use> states_;
  int num_held_ = 0;   // uses of which a copy has blocks to give out
  int next_held_ = 0;  // no use before it is such
  // Scratch.
  std::vector<int> scheduled_;  // uses given to the scheduler
  std::vector<ScheduledExpert> experts_;
  std::vector<ScheduledDevice> scheduled_devices_;
  std::vector<ExpertSite> sites_;
};

}  // namespace stoker
