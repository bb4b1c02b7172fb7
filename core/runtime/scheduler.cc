#include "core/runtime/scheduler.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <vector>

#include "core/base/check.h"

namespace stoker {
namespace {

// What bounds the time of assign(): a step of either search is an item or a machine looked at, a
// few nanoseconds. These limits keep 8 experts on 4 devices near 20 us and 128 on 16 below 200 us.
constexpr int kMaxLocalSteps = 14000;  // from each start
constexpr int kMaxBranchSteps = 4096;  // the whole tree of 10 experts on the host and one device
constexpr int kMaxBranchItems = 16;    // of more, too little of the tree is seen to find anything

bool host_may_compute(const ScheduledExpert& expert, const ScheduledHost& host) {
  return host.computes && expert.in_ram_us < kNotInRam;
}

double makespan_in_order(std::span<const int> order, std::span<const ScheduledExpert> experts,
                         const ScheduledHost& host, std::span<const ScheduledDevice> devices,
                         std::span<const ExpertSite> sites) {
  double host_us = host.busy_us, makespan = 0;
  std::array<double, kMaxScheduledDevices> device_us, copy_us;
  for (std::size_t d = 0; d < devices.size(); ++d) {
    device_us[d] = devices[d].busy_us;
    copy_us[d] = devices[d].copy_busy_us;
  }
  // 1. What the devices hold.
  for (const int i : order) {
    const int d = sites[i].device;
    if (d == ExpertSite::kOnHost || sites[i].upload) continue;
    device_us[d] += devices[d].cost.of(experts[i].num_rows);
    makespan = std::max(makespan, device_us[d]);
  }
  // 2. What comes from RAM.
  for (const int i : order) {
    const ScheduledExpert& expert = experts[i];
    const int d = sites[i].device;
    if (d == ExpertSite::kOnHost) {
      if (!host_may_compute(expert, host)) continue;
      host_us = std::max(host_us, expert.in_ram_us) + host.cost.of(expert.num_rows);
      makespan = std::max(makespan, host_us);
    } else if (sites[i].upload) {
      copy_us[d] = std::max(copy_us[d], expert.in_ram_us) + devices[d].upload_us;
      device_us[d] = std::max(device_us[d], copy_us[d]) + devices[d].cost.of(expert.num_rows);
      makespan = std::max(makespan, device_us[d]);
    }
  }
  return makespan;
}

void sort_by_arrival(std::span<int> order, std::span<const ScheduledExpert> experts) {
  for (std::size_t i = 0; i < order.size(); ++i) order[i] = static_cast<int>(i);
  std::sort(order.begin(), order.end(), [&](int a, int b) {
    return experts[a].in_ram_us != experts[b].in_ram_us
               ? experts[a].in_ram_us < experts[b].in_ram_us
               : a < b;
  });
}

}  // namespace

double makespan_us(std::span<const ScheduledExpert> experts, const ScheduledHost& host,
                   std::span<const ScheduledDevice> devices, std::span<const ExpertSite> sites) {
  CHECK(sites.size() == experts.size(), "{} sites for {} experts", sites.size(), experts.size());
  CHECK(devices.size() <= kMaxScheduledDevices, "{} devices", devices.size());
  std::vector<int> order(experts.size());
  sort_by_arrival(order, experts);
  return makespan_in_order(order, experts, host, devices, sites);
}

// A greedy schedule is improved by moves and swaps, then by branch and bound where experts are few.
// Where that does not prove it the best, two other starts are improved too, and the best is taken.
// All of it sees machines alone: the host is one to which copying takes no time.
class Scheduler::Search {
 public:
  explicit Search(int max_experts) {
    items_.resize(max_experts);
    gain_us_.resize(max_experts);
    for (std::vector<int>* indices :
         {&arrival_, &machine_of_, &best_, &placing_order_, &split_order_, &split_rank_}) {
      indices->resize(max_experts);
    }
  }

  double run(std::span<const ScheduledExpert> experts, const ScheduledHost& host,
             std::span<const ScheduledDevice> devices, std::span<ExpertSite> sites) {
    CHECK(experts.size() <= items_.size(), "{} experts, reserved for {}", experts.size(),
          items_.size());
    CHECK(sites.size() == experts.size(), "{} sites for {} experts", sites.size(), experts.size());
    CHECK(devices.size() <= kMaxScheduledDevices, "{} devices", devices.size());
    const std::span<int> arrival(arrival_.data(), experts.size());
    sort_by_arrival(arrival, experts);
    set_machines(host, devices);
    set_items(arrival, experts, sites);
    sort_items();
    best_us_ = kNotInRam;
    place_greedily(/*least_delay=*/false);
    improve();
    if (num_items_ > kMaxBranchItems || !branch_and_bound()) {
      place_greedily(/*least_delay=*/true);
      improve();
      if (host.computes) {
        place_split();
        improve();
      }
    }
    for (int k = 0; k < num_items_; ++k) {
      const int m = best_[k];
      sites[items_[k].index] = m == kHost ? ExpertSite{} : ExpertSite{m - 1, !holds(m, items_[k])};
    }
    return makespan_in_order(arrival, experts, host, devices, sites);
  }

 private:
  static constexpr int kHost = 0;  // device d is machine d + 1
  static constexpr int kMaxMachines = kMaxScheduledDevices + 1;
  static constexpr int kNone = -1;

  // An expert that some machine may compute. In order of arrival, those that nobody reads into RAM
  // first.
  struct Item {
    double in_ram_us;
    int num_rows;
    std::uint32_t held_by;  // bit m: machine m holds it
    int index;              // among the experts given
    int twin;               // twin_of() it
    bool in_ram() const { return in_ram_us < kNotInRam; }
  };
  struct Machine {
    ComputeCost cost;
    double upload_us;
  };
  // What a machine has been given. It is done when both its work is and the chain is that began
  // with the copy it had to wait for; unlike the time of its last expert, these two do not depend
  // on when experts that it holds are added.
  struct Load {
    double work_us;    // until busy, and all computing
    double chain_us;   // the end of the copies and computing after the last wait for a copy
    double copied_us;  // until its copy engine is done
    int num_free_slots;
    double done_us() const { return std::max(work_us, chain_us); }
  };

  static bool holds(int m, const Item& item) { return (item.held_by >> m & 1U) != 0; }
  double cost(int m, const Item& item) const { return machines_[m].cost.of(item.num_rows); }
  bool may_take(int m, const Item& item, const Load& load) const {
    return holds(m, item) || (item.in_ram() && load.num_free_slots > 0);
  }
  // Items that are copied must be added in their order for the times to be those of makespan_us().
  void add(int m, const Item& item, Load& load) const {
    const double us = cost(m, item);
    load.work_us += us;
    if (holds(m, item)) return;
    load.copied_us = std::max(load.copied_us, item.in_ram_us) + machines_[m].upload_us;
    load.chain_us = std::max(load.chain_us, load.copied_us) + us;
    --load.num_free_slots;
  }

  void set_machines(const ScheduledHost& host, std::span<const ScheduledDevice> devices) {
    num_machines_ = static_cast<int>(devices.size()) + 1;
    const int no_limit = static_cast<int>(items_.size());
    machines_[kHost] = {host.cost, 0.0};
    idle_[kHost] = {host.busy_us, 0.0, 0.0, host.computes ? no_limit : 0};
    for (int m = 1; m < num_machines_; ++m) {
      const ScheduledDevice& device = devices[m - 1];
      machines_[m] = {device.cost, device.upload_us};
      idle_[m] = {device.busy_us, 0.0, device.copy_busy_us,
                  std::clamp(device.num_free_slots, 0, no_limit)};
    }
  }

  void set_items(std::span<const int> arrival, std::span<const ScheduledExpert> experts,
                 std::span<ExpertSite> sites) {
    // Slots, the host's included, that experts held by no device leave to the others.
    num_spare_slots_ = 0;
    for (int m = 0; m < num_machines_; ++m) num_spare_slots_ += idle_[m].num_free_slots;
    const std::uint32_t all_devices = (1U << (num_machines_ - 1)) - 1;
    num_items_ = 0;
    for (const bool in_ram : {false, true}) {
      for (const int i : arrival) {
        if ((experts[i].in_ram_us < kNotInRam) != in_ram) continue;
        const std::uint32_t held_by = (experts[i].held_by & all_devices) << 1;
        sites[i] = {};
        if (held_by == 0 && (!in_ram || num_spare_slots_ == 0)) continue;  // nobody may compute it
        if (held_by == 0) --num_spare_slots_;
        items_[num_items_++] = {experts[i].in_ram_us, experts[i].num_rows, held_by, i, kNone};
      }
    }
    for (int k = 0; k < num_items_; ++k) items_[k].twin = twin_of(k);
  }

  // Two items may change places unnoticed if they are held alike, arrive and compute alike, and so
  // do all between them: then no machine sees another sequence of times.
  int twin_of(int k) const {
    const Item& item = items_[k];
    for (int t = k - 1; t >= 0; --t) {
      if (items_[t].in_ram_us != item.in_ram_us || items_[t].num_rows != item.num_rows) break;
      if (items_[t].held_by == item.held_by) return t;
    }
    return kNone;
  }

  // Those without choice, then as they arrive, of those that arrive together the longest first.
  void sort_items() {
    for (int k = 0; k < num_items_; ++k) placing_order_[k] = k;
    std::sort(placing_order_.begin(), placing_order_.begin() + num_items_, [&](int a, int b) {
      const Item &x = items_[a], &y = items_[b];
      if (x.in_ram() != y.in_ram()) return !x.in_ram();
      if (x.in_ram_us != y.in_ram_us) return x.in_ram_us < y.in_ram_us;
      return x.num_rows != y.num_rows ? x.num_rows > y.num_rows : a < b;
    });
  }

  // The machine of [begin, end) on which the item is done first, or that delays the whole schedule
  // least and then computes it fastest; kNone if none may take it.
  int best_machine(const Item& item, int begin, int end, bool least_delay) const {
    int best = kNone;
    double best_us = 0, best_cost = 0;
    for (int m = begin; m < end; ++m) {
      if (!may_take(m, item, load_[m])) continue;
      if (!holds(m, item) && item.held_by != 0 && num_spare_left_ == 0) continue;
      Load load = load_[m];
      add(m, item, load);
      const double us = least_delay ? std::max(load.done_us(), placed_us()) : load.done_us();
      const double us_alone = cost(m, item);
      if (best != kNone &&
          !(us < best_us || (least_delay && us == best_us && us_alone < best_cost)))
        continue;
      best = m;
      best_us = us;
      best_cost = us_alone;
    }
    return best;
  }

  double placed_us() const { return std::max(host_us_, devices_us_); }

  // Gives each item in placing order to the machine that `choose` names.
  template <typename Choose>
  void place(const Choose& choose) {
    load_ = idle_;
    num_spare_left_ = num_spare_slots_;
    host_us_ = devices_us_ = 0;
    for (int i = 0; i < num_items_; ++i) {
      const int k = placing_order_[i];
      const int m = choose(k);
      if (!holds(m, items_[k]) && items_[k].held_by != 0) --num_spare_left_;
      add(m, items_[k], load_[m]);
      double& us = m == kHost ? host_us_ : devices_us_;
      us = std::max(us, load_[m].done_us());
      machine_of_[k] = m;
    }
  }

  // Of items that arrive together the longest is added first, so times are estimates; improve()
  // finds the true ones.
  void place_greedily(bool least_delay) {
    place([&](int k) { return best_machine(items_[k], 0, num_machines_, least_delay); });
  }

  // The experts by which devices gain least go to the host, as many as keep it busy for as long as
  // the devices are. Where copying bounds the devices, a greedy host is left with long ones.
  void place_split() {
    for (int k = 0; k < num_items_; ++k) {
      double device_us = kNotInRam;
      for (int m = 1; m < num_machines_; ++m) {
        const double upload_us = holds(m, items_[k]) ? 0.0 : machines_[m].upload_us;
        device_us = std::min(device_us, cost(m, items_[k]) + upload_us);
      }
      gain_us_[k] = cost(kHost, items_[k]) - device_us;
      split_order_[k] = k;
    }
    std::sort(split_order_.begin(), split_order_.begin() + num_items_, [&](int a, int b) {
      return gain_us_[a] != gain_us_[b] ? gain_us_[a] < gain_us_[b] : a < b;
    });
    for (int i = 0; i < num_items_; ++i) split_rank_[split_order_[i]] = i;
    const auto place_with = [&](int num_on_host) {
      place([&](int k) {
        const bool on_host = split_rank_[k] < num_on_host;
        const int m = on_host ? best_machine(items_[k], kHost, 1, false)
                              : best_machine(items_[k], 1, num_machines_, false);
        return m != kNone ? m : best_machine(items_[k], 0, num_machines_, false);
      });
    };
    int min = 0, max = num_items_;
    while (min < max) {
      const int middle = (min + max) / 2;
      place_with(middle);
      if (host_us_ < devices_us_) {
        min = middle + 1;
      } else {
        max = middle;
      }
    }
    place_with(min);
  }

  // A machine's load with item `without` taken from it and item `with` given to it.
  Load load_of(int m, int without = kNone, int with = kNone) {
    num_local_steps_ += num_items_;
    Load load = idle_[m];
    bool used = false;
    for (int k = 0; k < num_items_; ++k) {
      if ((machine_of_[k] != m || k == without) && k != with) continue;
      add(m, items_[k], load);
      used = true;
    }
    if (!used) load.work_us = 0;  // nobody waits for it
    return load;
  }

  // While the machine that is done last can be relieved: moves an item of it to where both machines
  // are done earliest, or else swaps one. Keeps the outcome if it is the best so far.
  void improve() {
    num_local_steps_ = 0;
    for (int m = 0; m < num_machines_; ++m) load_[m] = load_of(m);
    while (true) {
      int last = 0;
      for (int m = 1; m < num_machines_; ++m) {
        if (load_[m].done_us() > load_[last].done_us()) last = m;
      }
      makespan_ = load_[last].done_us();
      if (num_local_steps_ > kMaxLocalSteps || !(move_from(last) || swap_with(last))) break;
    }
    keep(makespan_);
  }

  void keep(double us) {
    if (us >= best_us_) return;
    best_us_ = us;
    std::copy_n(machine_of_.begin(), num_items_, best_.begin());
  }

  bool move_from(int last) {
    double best_us = makespan_;
    int best_item = kNone, best_machine = kNone;
    for (int k = 0; k < num_items_; ++k) {
      if (machine_of_[k] != last) continue;
      const Item& item = items_[k];
      const double rest_us = load_of(last, k).done_us();
      if (rest_us >= best_us || num_local_steps_ > kMaxLocalSteps) continue;
      for (int m = 0; m < num_machines_; ++m) {
        if (m == last || !may_take(m, item, load_[m])) continue;
        if (load_[m].work_us + cost(m, item) >= best_us) continue;
        const double us = std::max(rest_us, load_of(m, kNone, k).done_us());
        if (us >= best_us) continue;
        best_us = us;
        best_item = k;
        best_machine = m;
      }
    }
    if (best_item == kNone) return false;
    machine_of_[best_item] = best_machine;
    load_[last] = load_of(last);
    load_[best_machine] = load_of(best_machine);
    return true;
  }

  bool swap_with(int last) {
    for (int k = 0; k < num_items_; ++k) {
      if (machine_of_[k] != last || load_of(last, k).done_us() >= makespan_) continue;
      for (int j = 0; j < num_items_; ++j) {
        const int m = machine_of_[j];
        if (m == last || num_local_steps_ > kMaxLocalSteps) continue;
        const Item &mine = items_[k], &other = items_[j];
        if (load_[m].work_us - cost(m, other) + cost(m, mine) >= makespan_) continue;
        if (load_[last].work_us - cost(last, mine) + cost(last, other) >= makespan_) continue;
        Load freed_m = load_[m], freed_last = load_[last];
        if (!holds(m, other)) ++freed_m.num_free_slots;
        if (!holds(last, mine)) ++freed_last.num_free_slots;
        if (!may_take(m, mine, freed_m) || !may_take(last, other, freed_last)) continue;
        const Load new_m = load_of(m, j, k);
        if (new_m.done_us() >= makespan_) continue;
        const Load new_last = load_of(last, k, j);
        if (new_last.done_us() >= makespan_) continue;
        machine_of_[k] = m;
        machine_of_[j] = last;
        load_[m] = new_m;
        load_[last] = new_last;
        return true;
      }
    }
    return false;
  }

  // True if no schedule is better than the best one, which it may have found.
  bool branch_and_bound() {
    int min_rows = num_items_ == 0 ? 0 : items_[0].num_rows;
    for (int k = 0; k < num_items_; ++k) min_rows = std::min(min_rows, items_[k].num_rows);
    const double tiny = 1e-9;  // of what takes no time, any number can be done
    for (int m = 0; m < num_machines_; ++m) {
      min_cost_[m] = machines_[m].cost.of(min_rows);
      per_cost_[m] = 1.0 / std::max(min_cost_[m], tiny);
      per_upload_[m] = 1.0 / std::max(machines_[m].upload_us, tiny);
      num_held_from_[num_items_][m] = 0;
      for (int k = num_items_ - 1; k >= 0; --k) {
        num_held_from_[k][m] = num_held_from_[k + 1][m] + holds(m, items_[k]);
      }
    }
    load_ = idle_;
    num_branch_steps_ = 0;
    branch(0, 0.0);
    return num_branch_steps_ <= kMaxBranchSteps;
  }

  // Items before `k` are placed and done at `done_us`; tries every machine for the others, of twins
  // the later one on no earlier machine.
  void branch(int k, double done_us) {
    if (k == num_items_) {
      keep(done_us);
      return;
    }
    if (!may_beat_best(k)) return;
    const Item& item = items_[k];
    for (int m = item.twin == kNone ? 0 : machine_of_[item.twin]; m < num_machines_; ++m) {
      if (!may_take(m, item, load_[m])) continue;
      num_branch_steps_ += num_machines_;
      if (num_branch_steps_ > kMaxBranchSteps) return;
      const Load before = load_[m];
      add(m, item, load_[m]);
      const double us = std::max(done_us, load_[m].done_us());
      if (us < best_us_) {
        machine_of_[k] = m;
        branch(k + 1, us);
      }
      load_[m] = before;
    }
  }

  // False if the machines cannot take all items from `k` on before best_us_, were they all as
  // short as the shortest.
  bool may_beat_best(int k) const {
    const double num_left = num_items_ - k;
    const double in_ram_us = items_[k].in_ram() ? items_[k].in_ram_us : 0.0;  // nor any later one
    const double rounding = 1e-6;
    double num_taken = 0;
    for (int m = 0; m < num_machines_; ++m) {
      const Load& load = load_[m];
      double copies =
          (best_us_ - min_cost_[m] - std::max(load.copied_us, in_ram_us)) * per_upload_[m] +
          rounding;
      copies = copies <= 0 ? 0 : std::min<double>(std::floor(copies), load.num_free_slots);
      const double begin_us = m == kHost ? std::max(load.done_us(), in_ram_us) : load.work_us;
      double computed = (best_us_ - begin_us) * per_cost_[m] + rounding;
      computed = computed <= 0 ? 0 : std::min(std::floor(computed), num_left);
      num_taken += std::min(computed, copies + num_held_from_[k][m]);
      if (num_taken >= num_left) return true;
    }
    return false;
  }

  int num_items_ = 0, num_machines_ = 0;
  int num_spare_slots_ = 0;
  std::vector<int> arrival_;
  std::vector<Item> items_;
  std::array<Machine, kMaxMachines> machines_;
  std::array<Load, kMaxMachines> idle_;

  // The schedule that is being built, and the best so far: the machine of each item.
  std::vector<int> machine_of_, best_;
  double best_us_ = 0;
  std::array<Load, kMaxMachines> load_;

  // place_...()
  std::vector<int> placing_order_, split_order_, split_rank_;
  std::vector<double> gain_us_;
  int num_spare_left_ = 0;
  double host_us_ = 0, devices_us_ = 0;

  // improve()
  double makespan_ = 0;
  int num_local_steps_ = 0;

  // branch_and_bound()
  int num_branch_steps_ = 0;
  std::array<double, kMaxMachines> min_cost_, per_cost_, per_upload_;
  std::array<std::array<int, kMaxMachines>, kMaxBranchItems + 1> num_held_from_;
};

Scheduler::Scheduler(int max_experts) : search_(std::make_unique<Search>(max_experts)) {}
Scheduler::~Scheduler() = default;

double Scheduler::assign(std::span<const ScheduledExpert> experts, const ScheduledHost& host,
                         std::span<const ScheduledDevice> devices, std::span<ExpertSite> sites) {
  return search_->run(experts, host, devices, sites);
}

}  // namespace stoker
