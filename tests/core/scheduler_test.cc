#include "core/runtime/scheduler.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <vector>

namespace stoker {
namespace {

constexpr ExpertSite kHostSite{};

struct Case {
  std::vector<ScheduledExpert> experts;
  ScheduledHost host;
  std::vector<ScheduledDevice> devices;

  int num_experts() const { return static_cast<int>(experts.size()); }
  int num_devices() const { return static_cast<int>(devices.size()); }
};

struct Schedule {
  std::vector<ExpertSite> sites;
  double us = 0;
};

double makespan(const Case& c, const std::vector<ExpertSite>& sites) {
  return makespan_us(c.experts, c.host, c.devices, sites);
}

Schedule assign(const Case& c) {
  Scheduler scheduler(c.num_experts());
  Schedule schedule{std::vector<ExpertSite>(c.experts.size())};
  schedule.us = scheduler.assign(c.experts, c.host, c.devices, schedule.sites);
  EXPECT_EQ(schedule.us, makespan(c, schedule.sites));
  return schedule;
}

bool held_by_any(const Case& c, const ScheduledExpert& expert) {
  for (int d = 0; d < c.num_devices(); ++d) {
    if (expert.held(d)) return true;
  }
  return false;
}

// Experts that nobody may compute, from the contract.
std::vector<bool> last_resorts(const Case& c) {
  std::vector<bool> last_resort(c.experts.size());
  std::vector<int> need_slot;
  int num_slots = 0;
  for (const ScheduledDevice& device : c.devices) num_slots += device.num_free_slots;
  for (int i = 0; i < c.num_experts(); ++i) {
    if (held_by_any(c, c.experts[i])) continue;
    if (c.experts[i].in_ram_us == kNotInRam) {
      last_resort[i] = true;
    } else if (!c.host.computes) {
      need_slot.push_back(i);
    }
  }
  std::stable_sort(need_slot.begin(), need_slot.end(),
                   [&](int a, int b) { return c.experts[a].in_ram_us < c.experts[b].in_ram_us; });
  for (std::size_t i = num_slots; i < need_slot.size(); ++i) last_resort[need_slot[i]] = true;
  return last_resort;
}

// Calls `visit` with every site that expert i may have while `free_slots` are left.
template <typename Visit>
void for_each_site(const Case& c, int i, bool last_resort, std::vector<int>& free_slots,
                   const Visit& visit) {
  const ScheduledExpert& expert = c.experts[i];
  const bool in_ram = expert.in_ram_us < kNotInRam;
  if (last_resort || (c.host.computes && in_ram)) visit(kHostSite);
  if (last_resort) return;
  for (int d = 0; d < c.num_devices(); ++d) {
    if (expert.held(d)) {
      visit(ExpertSite{d, false});
    } else if (in_ram && free_slots[d] > 0) {
      --free_slots[d];
      visit(ExpertSite{d, true});
      ++free_slots[d];
    }
  }
}

std::vector<int> free_slots(const Case& c) {
  std::vector<int> slots;
  slots.reserve(c.devices.size());
  for (const ScheduledDevice& device : c.devices) slots.push_back(device.num_free_slots);
  return slots;
}

void try_all(const Case& c, const std::vector<bool>& last_resort, std::vector<int>& slots,
             std::vector<ExpertSite>& sites, double& best_us) {
  const int i = static_cast<int>(sites.size());
  if (i == c.num_experts()) {
    best_us = std::min(best_us, makespan(c, sites));
    return;
  }
  for_each_site(c, i, last_resort[i], slots, [&](ExpertSite site) {
    sites.push_back(site);
    try_all(c, last_resort, slots, sites, best_us);
    sites.pop_back();
  });
}

double optimum_us(const Case& c) {
  std::vector<int> slots = free_slots(c);
  std::vector<ExpertSite> sites;
  double best_us = kNotInRam;
  try_all(c, last_resorts(c), slots, sites, best_us);
  return best_us;
}

// One expert after another to where the schedule so far grows least.
double greedy_us(const Case& c) {
  const std::vector<bool> last_resort = last_resorts(c);
  std::vector<int> slots = free_slots(c);
  std::vector<ExpertSite> sites;
  double done_us = 0;
  for (int i = 0; i < c.num_experts(); ++i) {
    double best_us = kNotInRam;
    ExpertSite best;
    sites.emplace_back();
    for_each_site(c, i, last_resort[i], slots, [&](ExpertSite site) {
      sites.back() = site;
      const double us =
          makespan_us(std::span(c.experts).first(sites.size()), c.host, c.devices, sites);
      if (us >= best_us) return;
      best_us = us;
      best = site;
    });
    sites.back() = best;
    if (best.upload) --slots[best.device];
    done_us = best_us;
  }
  return done_us;
}

void expect_allowed(const Case& c, const std::vector<ExpertSite>& sites) {
  const std::vector<bool> last_resort = last_resorts(c);
  std::vector<int> slots = free_slots(c);
  for (int i = 0; i < c.num_experts(); ++i) {
    const ExpertSite site = sites[i];
    bool allowed = false;
    for_each_site(c, i, last_resort[i], slots, [&](ExpertSite s) { allowed |= s == site; });
    EXPECT_TRUE(allowed) << "expert " << i << " on " << site.device << ", upload " << site.upload;
    if (site.upload) --slots[site.device];
  }
}

class Random {
 public:
  explicit Random(int seed) : bits_(seed) {}
  int integer(int min, int max) {
    return min + static_cast<int>(bits_() % static_cast<unsigned>(max - min + 1));
  }
  bool once_in(int n) { return integer(1, n) == 1; }
  // 0 to max, large ones more often.
  int mostly(int max) { return std::max(integer(0, max), integer(0, max)); }
  double real(double min, double max) { return min + (max - min) * (bits_() / 4294967296.0); }
  double zero_or(double max) { return once_in(2) ? 0.0 : real(0, max); }
  // Nothing, the same for many, next to nothing, or far apart.
  double nasty() {
    constexpr double kScales[] = {0, 1e-3, 1, 100, 1e4, 1e7};
    const double scale = kScales[integer(0, 5)];
    return once_in(2) ? scale : real(0, scale);
  }

 private:
  std::mt19937 bits_;
};

// A few hundred microseconds for an expert on the host or over PCIe, tens on a device, milliseconds
// from a drive.
Case realistic_case(Random& random, int num_experts, int num_devices, int max_rows) {
  Case c;
  c.host = {true, random.zero_or(300), {random.real(100, 500), random.real(2, 40)}};
  const bool alike = random.once_in(2);
  for (int d = 0; d < num_devices; ++d) {
    ScheduledDevice device = {random.zero_or(100),
                              random.zero_or(600),
                              0,
                              {random.real(10, 60), random.real(0.2, 4)},
                              random.real(150, 900)};
    if (alike && d > 0) device = c.devices[0];
    device.num_free_slots = random.integer(0, num_experts);
    c.devices.push_back(device);
  }
  for (int i = 0; i < num_experts; ++i) {
    ScheduledExpert expert{random.integer(1, max_rows),
                           random.once_in(4) ? random.real(0, 3000) : 0};
    for (int d = 0; d < num_devices; ++d) expert.held_by |= random.once_in(4) ? 1U << d : 0U;
    if (expert.held_by != 0 && random.once_in(3)) expert.in_ram_us = kNotInRam;
    c.experts.push_back(expert);
  }
  return c;
}

Case nasty_case(Random& random, int num_experts, int num_devices) {
  Case c;
  c.host = {!random.once_in(4), random.nasty(), {random.nasty(), random.nasty()}};
  for (int d = 0; d < num_devices; ++d) {
    c.devices.push_back({random.nasty(),
                         random.nasty(),
                         random.integer(0, 3),
                         {random.nasty(), random.nasty()},
                         random.nasty()});
  }
  for (int i = 0; i < num_experts; ++i) {
    c.experts.push_back({random.integer(1, 20), random.once_in(5) ? kNotInRam : random.nasty(),
                         static_cast<std::uint32_t>(random.integer(0, 31))});
  }
  return c;
}

// Compares with exhaustive search; the worst and the mean ratio go into the test's record.
template <typename MakeCase>
void compare_with_optimum(int num_cases, int seed, const MakeCase& make_case) {
  Random random(seed);
  double worst = 1, sum = 0;
  for (int n = 0; n < num_cases; ++n) {
    const Case c = make_case(random);
    const Schedule schedule = assign(c);
    expect_allowed(c, schedule.sites);
    const double best_us = optimum_us(c);
    ASSERT_GE(schedule.us, best_us) << "case " << n;
    ASSERT_LE(schedule.us, 1.05 * best_us) << "case " << n;
    const double ratio = best_us > 0 ? schedule.us / best_us : 1;
    worst = std::max(worst, ratio);
    sum += ratio;
  }
  testing::Test::RecordProperty("worst_ratio", std::to_string(worst));
  testing::Test::RecordProperty("mean_ratio", std::to_string(sum / num_cases));
  EXPECT_LE(worst, 1.0 + 1e-9);  // found so far; the requirement is the 1.05 above
}

TEST(SchedulerOptimum, DecodeOfOneRow) {
  compare_with_optimum(10000, 1, [](Random& random) {
    return realistic_case(random, random.mostly(6), random.mostly(3), 1);
  });
}
TEST(SchedulerOptimum, SeveralRows) {
  compare_with_optimum(10000, 2, [](Random& random) {
    return realistic_case(random, random.mostly(6), random.mostly(3), 16);
  });
}
TEST(SchedulerOptimum, NastyTimes) {
  compare_with_optimum(10000, 3, [](Random& random) {
    return nasty_case(random, random.mostly(6), random.mostly(3));
  });
}
TEST(SchedulerOptimum, TenExpertsAndOneDevice) {
  compare_with_optimum(60, 4, [](Random& random) { return realistic_case(random, 10, 1, 8); });
}
TEST(SchedulerOptimum, EightExpertsAndTwoDevices) {
  compare_with_optimum(40, 5, [](Random& random) { return realistic_case(random, 8, 2, 4); });
}

// Where whole search is out of reach: the rules hold, and a plain greedy schedule is mostly worse.
TEST(Scheduler, IsBetterThanPlainGreedyOnManyExperts) {
  Random random(6);
  double worst = 0, sum = 0;
  constexpr int kNumCases = 100;
  for (int n = 0; n < kNumCases; ++n) {
    const Case c = realistic_case(random, random.integer(7, 60), random.integer(0, 8), 16);
    const Schedule schedule = assign(c);
    expect_allowed(c, schedule.sites);
    const double ratio = schedule.us / greedy_us(c);
    worst = std::max(worst, ratio);
    sum += ratio;
  }
  RecordProperty("worst_ratio", std::to_string(worst));
  RecordProperty("mean_ratio", std::to_string(sum / kNumCases));
  EXPECT_LT(worst, 1.02);            // 1.000 when this was written
  EXPECT_LT(sum / kNumCases, 0.98);  // 0.970
}

TEST(Scheduler, KeepsTheRulesOnManyExpertsOfNastyTimes) {
  Random random(9);
  for (int n = 0; n < 200; ++n) {
    const Case c = nasty_case(random, random.integer(7, 128), random.integer(0, 16));
    expect_allowed(c, assign(c).sites);
  }
}

// Devices that are alike and hold everything: no schedule is shorter than all work shared evenly,
// or than the longest expert.
TEST(Scheduler, SharesManyExpertsEvenly) {
  Random random(7);
  for (int n = 0; n < 40; ++n) {
    Case c;
    c.host.computes = false;
    const int num_devices = random.integer(1, 8);
    for (int d = 0; d < num_devices; ++d) c.devices.push_back({0, 0, 0, {10, 5}, 1});
    double work_us = 0, longest_us = 0;
    for (int i = 0; i < 128; ++i) {
      c.experts.push_back({random.integer(1, 16), kNotInRam, 0xffff});
      const double us = c.devices[0].cost.of(c.experts[i].num_rows);
      work_us += us;
      longest_us = std::max(longest_us, us);
    }
    const Schedule schedule = assign(c);
    const double bound_us = std::max(work_us / num_devices, longest_us);
    EXPECT_GE(schedule.us, bound_us - 1e-6);
    EXPECT_LE(schedule.us, 1.01 * bound_us) << num_devices << " devices";
  }
}

TEST(Scheduler, TheSameInputGivesTheSameSites) {
  Random random(8);
  Scheduler used(128);
  for (int n = 0; n < 30; ++n) {
    const Case c = realistic_case(random, random.integer(1, 128), random.integer(0, 4), 16);
    Schedule again{std::vector<ExpertSite>(c.experts.size(), ExpertSite{7, true})};
    again.us = used.assign(c.experts, c.host, c.devices, again.sites);
    const Schedule first = assign(c);
    EXPECT_EQ(again.sites, first.sites);
    EXPECT_EQ(again.us, first.us);
  }
}

ScheduledDevice device_with_slots(int num_free_slots) {
  ScheduledDevice device;
  device.num_free_slots = num_free_slots;
  device.cost = {.expert_us = 10, .row_us = 0};
  device.upload_us = 50;
  return device;
}
const ScheduledHost kHost = {.computes = true, .busy_us = 0, .cost = {.expert_us = 100}};
const ScheduledHost kKeeper = {.computes = false, .busy_us = 0, .cost = {}};

TEST(Scheduler, NothingTakesNoTime) {
  EXPECT_EQ(assign({{}, {true, 70, {100, 1}}, {device_with_slots(3)}}).us, 0);
  EXPECT_EQ(assign({{}, kHost, {}}).us, 0);
}

TEST(Scheduler, HostAloneComputesAsExpertsArrive) {
  const Case c = {{{2, 500}, {1, 0}, {3, 40}}, {true, 25, {100, 10}}, {}};
  const Schedule schedule = assign(c);
  EXPECT_EQ(schedule.sites, std::vector<ExpertSite>(3, kHostSite));
  EXPECT_EQ(schedule.us, 500 + 120);  // the others are done at 25 + 110 + 130
}

TEST(Scheduler, UploadsWhatShortensTheLayer) {
  // Two copied one after another, the second computed at 100..110; one on the host until 100.
  EXPECT_EQ(assign({{{}, {}, {}}, kHost, {device_with_slots(8)}}).us, 110);
  // Room for one: two on the host.
  EXPECT_EQ(assign({{{}, {}, {}}, kHost, {device_with_slots(1)}}).us, 200);
  // A copy engine that is busy does not pay.
  Case c = {{{}, {}}, kHost, {device_with_slots(8)}};
  c.devices[0].copy_busy_us = 145;
  const Schedule schedule = assign(c);
  EXPECT_EQ(schedule.us, 200);
  EXPECT_EQ(schedule.sites, std::vector<ExpertSite>(2, kHostSite));
}

TEST(Scheduler, WhatOnlyADeviceHoldsIsComputedThere) {
  Case c = {{{1, kNotInRam, 0b10}, {1, 0}}, kHost, {device_with_slots(5), device_with_slots(0)}};
  c.devices[1].cost.expert_us = 5000;
  const Schedule schedule = assign(c);
  EXPECT_EQ(schedule.sites[0], (ExpertSite{1, false}));
  EXPECT_EQ(schedule.sites[1], (ExpertSite{0, true}));
  EXPECT_EQ(schedule.us, 5000);
}

TEST(Scheduler, HoldersShareWhatSeveralHold) {
  const Case c = {{{1, kNotInRam, 0b11}, {1, kNotInRam, 0b11}, {1, kNotInRam, 0b01}},
                  kHost,
                  {device_with_slots(0), device_with_slots(0)}};
  const Schedule schedule = assign(c);
  EXPECT_EQ(schedule.us, 20);
  EXPECT_EQ(schedule.sites[2], (ExpertSite{0, false}));
}

TEST(Scheduler, HolderMayBeTooBusy) {
  Case c = {{{1, 0, 0b1}}, kHost, {device_with_slots(0), device_with_slots(1)}};
  c.devices[0].busy_us = 1000;
  EXPECT_EQ(assign(c).sites[0], (ExpertSite{1, true}));
  c.devices[1].num_free_slots = 0;
  EXPECT_EQ(assign(c).sites[0], kHostSite);
}

TEST(Scheduler, ManyRowsGoWhereRowsAreCheap) {
  Case c = {{{1, 0}, {16, 0}}, {true, 0, {20, 30}}, {device_with_slots(1)}};
  c.devices[0].cost.row_us = 1;
  const Schedule schedule = assign(c);
  EXPECT_EQ(schedule.sites, (std::vector<ExpertSite>{kHostSite, {0, true}}));
  EXPECT_EQ(schedule.us, 50 + 10 + 16);
}

TEST(Scheduler, SlotsGoToExpertsThatNothingElseComputes) {
  // One slot, and a host that does not compute: the held expert stays where it is, however slow.
  Case c = {{{1, 0, 0b10}, {1, 0}}, kKeeper, {device_with_slots(1), device_with_slots(0)}};
  c.devices[1].cost.expert_us = 700;
  const Schedule schedule = assign(c);
  EXPECT_EQ(schedule.sites, (std::vector<ExpertSite>{{1, false}, {0, true}}));
  EXPECT_EQ(schedule.us, 700);
}

TEST(Scheduler, WhatNobodyMayComputeIsLeftToTheHost) {
  // Nowhere at all.
  EXPECT_EQ(assign({{{1, kNotInRam}}, kHost, {device_with_slots(4)}}).sites[0], kHostSite);
  // Bits of devices that are not there hold nothing.
  EXPECT_EQ(assign({{{1, kNotInRam, 0b110}}, kHost, {device_with_slots(4)}}).sites[0], kHostSite);
  EXPECT_EQ(assign({{{1, 0}, {1, 0}}, kKeeper, {}}).us, 0);
  // Too many for the slots: the last to be in RAM, then the higher index.
  const Case c = {{{1, 9}, {1, 0}, {1, 0}, {1, 0}}, kKeeper, {device_with_slots(2)}};
  const Schedule schedule = assign(c);
  EXPECT_EQ(schedule.sites, (std::vector<ExpertSite>{kHostSite, {0, true}, {0, true}, kHostSite}));
  EXPECT_EQ(schedule.us, 110);
}

TEST(Scheduler, TimesMayBeZero) {
  Case c = {std::vector<ScheduledExpert>(20), {}, {ScheduledDevice{}}};
  EXPECT_EQ(assign(c).us, 0);
  c.host.busy_us = 30;
  c.devices[0] = {7, 3, 20, {}, 0};
  EXPECT_EQ(assign(c).us, 7);
}

TEST(SchedulerMakespan, CopiesOverlapWithComputing) {
  ScheduledDevice device = device_with_slots(2);
  device.busy_us = 5;
  const Case c = {{{1, 0}, {1, 0}, {1, kNotInRam, 1}}, kHost, {device}};
  // Computes what it holds at 5..15, the copies of 0..50 and 50..100 as they end.
  EXPECT_EQ(makespan(c, {{0, true}, {0, true}, {0, false}}), 110);
  // Held experts come first: a copy that has ended waits for them.
  Case slow = c;
  slow.devices[0].cost.expert_us = 80;
  EXPECT_EQ(makespan(slow, {{0, true}, {0, true}, {0, false}}), 5 + 3 * 80);
}

TEST(SchedulerMakespan, ExpertsAreTakenAsTheyArrive) {
  const Case c = {{{1, 300}, {1, 120}, {1, 120}}, kHost, {device_with_slots(3)}};
  EXPECT_EQ(makespan(c, {kHostSite, kHostSite, kHostSite}), 420);
  // The copy engine waits for expert 1 until 120, for expert 0 until 300.
  EXPECT_EQ(makespan(c, {{0, true}, {0, true}, kHostSite}), 360);
  EXPECT_EQ(makespan(c, {kHostSite, {0, true}, {0, true}}), 400);
}

}  // namespace
}  // namespace stoker
