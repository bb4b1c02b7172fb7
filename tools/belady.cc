#include "tools/belady.h"

#include <algorithm>
#include <limits>
#include <numeric>
#include <queue>

namespace stoker::tools {
namespace {

constexpr std::int64_t kNever = std::numeric_limits<std::int64_t>::max();

// For every entry of `ids`: the demand that names its expert next.
std::vector<std::int64_t> next_demands(const DemandSequence& demands) {
  std::vector<std::int64_t> next(demands.ids.size());
  std::vector<std::int64_t> coming(static_cast<std::size_t>(demands.num_ids), kNever);
  std::size_t entry = demands.ids.size();
  for (std::int64_t i = demands.size() - 1; i >= 0; --i) {
    const std::size_t begin = entry - demands.demand(i).size();
    for (std::size_t j = begin; j < entry; ++j) {
      next[j] = std::exchange(coming[static_cast<std::size_t>(demands.ids[j])], i);
    }
    entry = begin;
  }
  return next;
}

// Which experts are resident, and which of them is demanded again the latest.
class FarthestFirst {
 public:
  FarthestFirst(int num_ids, int num_slots)
      : next_(static_cast<std::size_t>(num_ids)),
        resident_(static_cast<std::size_t>(num_ids)),
        num_free_(num_slots) {}

  bool resident(std::int32_t id) const { return resident_[static_cast<std::size_t>(id)]; }
  int num_free() const { return num_free_; }
  // `id` comes in, to be ranked; the farthest goes if no slot is free.
  void load(std::int32_t id) {
    if (num_free_ > 0) {
      --num_free_;
    } else {
      evict();
    }
    resident_[static_cast<std::size_t>(id)] = true;
  }
  // `id` comes in; the farthest goes if no slot is free, be it `id` itself.
  void offer(std::int32_t id, std::int64_t next) {
    resident_[static_cast<std::size_t>(id)] = true;
    rank(id, next);
    if (num_free_ > 0) {
      --num_free_;
    } else {
      evict();
    }
  }
  // A resident expert must stay until the next rank().
  void hold(std::int32_t id) { next_[static_cast<std::size_t>(id)] = kHeld; }
  void rank(std::int32_t id, std::int64_t next) {
    next_[static_cast<std::size_t>(id)] = next;
    heap_.emplace(next, id);
  }

 private:
  static constexpr std::int64_t kHeld = -1;

  void evict() {
    while (true) {
      CHECK(!heap_.empty(), "every slot is held");
      const auto [next, id] = heap_.top();
      heap_.pop();
      // Others were ranked anew, or are gone.
      if (!resident(id) || next_[static_cast<std::size_t>(id)] != next) continue;
      resident_[static_cast<std::size_t>(id)] = false;
      return;
    }
  }

  std::vector<std::int64_t> next_;  // demand that names it next, of residents
  std::vector<bool> resident_;
  std::priority_queue<std::pair<std::int64_t, std::int32_t>> heap_;
  int num_free_;
};

}  // namespace

void DemandSequence::add(std::span<const std::int32_t> demand) {
  ids.insert(ids.end(), demand.begin(), demand.end());
  ends.push_back(ids.size());
}

DemandSequence demands_of(const RoutingTrace& trace, std::int64_t first, std::int64_t last) {
  DemandSequence demands;
  demands.num_ids = trace.num_layers() * trace.num_experts;
  std::vector<std::int32_t> demand;
  while (first < last) {
    std::int64_t end = first;
    while (end < last && trace.step[static_cast<std::size_t>(end)] ==
                             trace.step[static_cast<std::size_t>(first)]) {
      ++end;
    }
    for (int place = 0; place < trace.num_layers(); ++place) {
      demand.clear();
      for (std::int64_t token = first; token < end; ++token) {
        for (const std::int16_t expert : trace.chosen(token, place))
          demand.push_back(place * trace.num_experts + expert);
      }
      std::sort(demand.begin(), demand.end());
      demand.erase(std::unique(demand.begin(), demand.end()), demand.end());
      demands.add(demand);
    }
    first = end;
  }
  return demands;
}

std::vector<std::int32_t> fewest_reads(const DemandSequence& demands, int num_slots,
                                       FirstContent first) {
  CHECK(num_slots > 0, "{} slots", num_slots);
  const std::vector<std::int64_t> next = next_demands(demands);
  FarthestFirst cache(demands.num_ids, num_slots);
  std::vector<std::size_t> missing;  // entries of `ids`
  std::vector<std::int32_t> reads(static_cast<std::size_t>(demands.size()));
  for (std::int64_t i = 0; i < demands.size(); ++i) {
    const std::size_t end = demands.ends[static_cast<std::size_t>(i)];
    const std::size_t begin = end - demands.demand(i).size();
    const bool fits = end - begin <= static_cast<std::size_t>(num_slots);
    // 1. Who is there stays, if all fit.
    missing.clear();
    for (std::size_t entry = begin; entry < end; ++entry) {
      const std::int32_t id = demands.ids[entry];
      if (!cache.resident(id)) {
        missing.push_back(entry);
      } else if (fits) {
        cache.hold(id);
      } else {
        cache.rank(id, next[entry]);
      }
    }
    // 2. Who is not comes.
    for (const std::size_t entry : missing) {
      // An empty slot stands for content that was there before the first demand.
      const bool given = first == FirstContent::kBest && cache.num_free() > 0;
      if (!given) ++reads[static_cast<std::size_t>(i)];
      if (fits) {
        cache.load(demands.ids[entry]);
      } else {
        cache.offer(demands.ids[entry], next[entry]);
      }
    }
    if (!fits) continue;
    for (std::size_t entry = begin; entry < end; ++entry)
      cache.rank(demands.ids[entry], next[entry]);
  }
  return reads;
}

double least_time_us(std::span<const std::int32_t> reads, std::span<const double> compute_us,
                     double read_us) {
  CHECK(reads.size() == compute_us.size(), "{} demands, {} times", reads.size(), compute_us.size());
  double least = std::accumulate(compute_us.begin(), compute_us.end(), 0.0);
  double after = least, arrived = 0.0;
  for (std::size_t i = 0; i < reads.size(); ++i) {
    after -= compute_us[i];
    arrived += reads[i] * read_us;
    least = std::max(least, arrived + after);
  }
  return least;
}

}  // namespace stoker::tools
