// ExpertCache under every policy against a naive cache that follows the header's words, over random
// operations; and what each policy promises, on cases small enough to read.
#include "prefetch/expert_cache.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <random>
#include <string>

namespace stoker {
namespace {

constexpr ExpertGrid kGrid{4, 16};

ExpertCache make_cache(std::string_view policy, int num_slots, ExpertGrid grid = kGrid) {
  return ExpertCache(grid, num_slots, make_eviction_policy(policy, grid, num_slots).value());
}

// Who is where, kept in maps.
struct NaiveCache {
  enum class State { kInFlight, kResident };
  struct Entry {
    ExpertId id;
    State state;
    int leases = 0;
  };
  std::map<SlotIdx, Entry> slots;
  int num_usable = 0;

  std::optional<SlotIdx> find(ExpertId id) const {
    for (const auto& [slot, entry] : slots) {
      if (entry.id == id) return slot;
    }
    return std::nullopt;
  }
  int count(State state, bool leased) const {
    return static_cast<int>(std::count_if(slots.begin(), slots.end(), [&](const auto& at) {
      return at.second.state == state && (at.second.leases > 0) == leased;
    }));
  }
};

class EveryPolicy : public testing::TestWithParam<std::string_view> {};

// The cache and a naive one under the same random operations; where they differ the test fails.
class RandomOperations {
 public:
  RandomOperations(std::string_view policy, unsigned seed)
      : random_(seed), cache_(make_cache(policy, kSlots)) {}

  void step() {
    const ExpertId id{pick(kGrid.num_layers), pick(kGrid.num_experts)};
    switch (pick(9)) {
      case 0:
        grow();
        break;
      case 1:
      case 2:
        reserve(id);
        break;
      case 3:
      case 4:
        end_one_in_flight();
        break;
      case 5:
        lease(id);
        break;
      case 6:
        release();
        break;
      case 7:
        evict_or_rank();
        break;
      case 8:
        layer_ = (layer_ + 1) % kGrid.num_layers;
        cache_.begin_turn(layer_);
        break;
    }
    if (!testing::Test::HasFatalFailure()) compare(id);
  }

 private:
  using State = NaiveCache::State;
  static constexpr int kSlots = 13;
  static constexpr Standing kStandings[] = {Standing::kUsed, Standing::kGuessed, Standing::kCold};

  int pick(int n) { return static_cast<int>(random_() % static_cast<unsigned>(n)); }

  void grow() {
    naive_.num_usable = std::min(kSlots, naive_.num_usable + pick(3));
    cache_.grow(naive_.num_usable);
  }

  void reserve(ExpertId id) {
    if (naive_.find(id)) return;
    const bool full = static_cast<int>(naive_.slots.size()) == naive_.num_usable;
    const bool may_evict = pick(4) != 0;
    const auto victim = full && may_evict ? cache_.victim() : std::nullopt;
    const auto slot = may_evict ? cache_.reserve(id) : cache_.reserve_free(id);
    const bool can = !full || (may_evict && naive_.count(State::kResident, false) > 0);
    ASSERT_EQ(slot.has_value(), can);
    if (!slot) return;
    if (full) {
      ASSERT_EQ(slot, victim);
      ASSERT_EQ(naive_.slots.at(*slot).leases, 0);
      ASSERT_EQ(naive_.slots.at(*slot).state, State::kResident);
      naive_.slots.erase(*slot);
    }
    ASSERT_FALSE(naive_.slots.contains(*slot));
    ASSERT_LT(*slot, naive_.num_usable);
    naive_.slots[*slot] = {id, State::kInFlight};
  }

  // It has come, or never will.
  void end_one_in_flight() {
    std::vector<SlotIdx> in_flight;
    for (const auto& [slot, entry] : naive_.slots) {
      if (entry.state == State::kInFlight) in_flight.push_back(slot);
    }
    if (in_flight.empty()) return;
    const SlotIdx slot = in_flight[pick(static_cast<int>(in_flight.size()))];
    const int how = pick(4);
    if (how == 0) {
      cache_.abandon(slot);
      naive_.slots.erase(slot);
      return;
    }
    naive_.slots[slot].state = State::kResident;
    if (how == 1) {
      leases_.push_back(cache_.commit_leased(slot));
      ++naive_.slots[slot].leases;
    } else {
      cache_.commit(slot, kStandings[pick(3)]);
    }
  }

  void lease(ExpertId id) {
    auto lease = cache_.lease(id);
    const auto slot = naive_.find(id);
    ASSERT_EQ(lease.has_value(), slot && naive_.slots[*slot].state == State::kResident);
    if (!lease) return;
    ASSERT_EQ(lease->slot(), *slot);
    ++naive_.slots[*slot].leases;
    leases_.push_back(std::move(*lease));
  }

  void release() {
    if (leases_.empty()) return;
    std::swap(leases_[pick(static_cast<int>(leases_.size()))], leases_.back());
    --naive_.slots[leases_.back().slot()].leases;
    leases_.back().release(kStandings[pick(3)]);
    leases_.pop_back();
  }

  void evict_or_rank() {
    const auto slot = cache_.victim();
    ASSERT_EQ(slot.has_value(), naive_.count(State::kResident, false) > 0);
    if (!slot) return;
    if (pick(2) == 0) {
      cache_.rank(*slot, Standing::kKept);
      ASSERT_TRUE(cache_.victim().has_value());
    } else {
      cache_.evict(*slot);
      naive_.slots.erase(*slot);
    }
  }

  void compare(ExpertId id) {
    ASSERT_EQ(cache_.num_in_flight(), naive_.count(State::kInFlight, false));
    ASSERT_EQ(cache_.num_leased(), naive_.count(State::kResident, true));
    ASSERT_EQ(cache_.num_evictable(), naive_.count(State::kResident, false));
    ASSERT_EQ(cache_.num_free(), naive_.num_usable - static_cast<int>(naive_.slots.size()));
    ASSERT_EQ(cache_.slot_of(id), naive_.find(id));
    for (const auto& [slot, entry] : naive_.slots) {
      ASSERT_EQ(cache_.expert_in(slot), entry.id);
      ASSERT_EQ(cache_.resident(entry.id), entry.state == State::kResident);
      ASSERT_EQ(cache_.in_flight(entry.id), entry.state == State::kInFlight);
    }
  }

  std::mt19937 random_;
  ExpertCache cache_;
  NaiveCache naive_;
  std::vector<ExpertLease> leases_;  // gone before the cache
  int layer_ = 0;
};

TEST_P(EveryPolicy, AgreesWithANaiveCacheOnRandomOperations) {
  for (unsigned seed = 1; seed <= 20; ++seed) {
    RandomOperations operations(GetParam(), seed);
    for (int step = 0; step < 3000; ++step) {
      operations.step();
      ASSERT_FALSE(HasFatalFailure()) << "seed " << seed << ", step " << step;
    }
  }
}

// Reads `id` if it is absent, uses it and lets it go.
void use(ExpertCache& cache, ExpertId id, Standing standing = Standing::kUsed) {
  if (auto lease = cache.lease(id)) {
    lease->release(standing);
  } else {
    cache.commit_leased(cache.reserve(id).value()).release(standing);
  }
}

TEST_P(EveryPolicy, ColdGoesFirstAndTheFirstToComeIsTheFirstToGo) {
  ExpertCache cache = make_cache(GetParam(), 4);
  cache.grow(4);
  cache.begin_turn(0);
  use(cache, {0, 1});
  use(cache, {0, 2}, Standing::kCold);
  use(cache, {0, 3});
  use(cache, {0, 4}, Standing::kCold);
  cache.begin_turn(1);
  use(cache, {1, 0});
  EXPECT_FALSE(cache.slot_of({0, 2}));
  use(cache, {1, 1});
  EXPECT_FALSE(cache.slot_of({0, 4}));
  EXPECT_TRUE(cache.resident({0, 1}));
  EXPECT_TRUE(cache.resident({0, 3}));
}

TEST_P(EveryPolicy, AKeptPlaceIsTheOldPlace) {
  ExpertCache kept = make_cache(GetParam(), 6), untouched = make_cache(GetParam(), 6);
  for (ExpertCache* cache : {&kept, &untouched}) {
    cache->grow(6);
    for (int i = 0; i < 6; ++i) {
      cache->begin_turn(i % 4);
      use(*cache, {i % 4, i});
      if (i % 2 == 0) use(*cache, {i % 4, i});
    }
  }
  for (const int i : {3, 0, 4}) use(kept, {i % 4, i}, Standing::kKept);
  for (int i = 0; i < 6; ++i) {
    const SlotIdx victim = untouched.victim().value();
    EXPECT_EQ(kept.victim(), victim);
    kept.evict(victim);
    untouched.evict(victim);
  }
}

// What lies below one step's worth of slots is hopeless for plain recency; every policy must at
// least not crash there, and must find the model that fits resident for good.
TEST_P(EveryPolicy, AModelThatFitsIsNeverEvicted) {
  ExpertCache cache = make_cache(GetParam(), kGrid.size());
  cache.grow(kGrid.size());
  std::mt19937 random(7);
  for (int step = 0; step < 500; ++step) {
    for (int layer = 0; layer < kGrid.num_layers; ++layer) {
      cache.begin_turn(layer);
      use(cache, {layer, static_cast<int>(random() % 16)});
    }
  }
  EXPECT_EQ(cache.num_evictable(), kGrid.size());
}

INSTANTIATE_TEST_SUITE_P(Policies, EveryPolicy,
                         testing::ValuesIn(eviction_policy_names().begin(),
                                           eviction_policy_names().end()),
                         [](const auto& info) { return std::string(info.param); });

TEST(EvictionPolicy, AnUnknownNameIsAnErrorThatListsTheKnownOnes) {
  const auto policy = make_eviction_policy("mru", kGrid, 4);
  ASSERT_FALSE(policy.ok());
  EXPECT_THAT(policy.error().message(), testing::HasSubstr("lru, lrfu, slru, s3fifo, turns"));
}

TEST(LruPolicy, TheOneNotUsedForTheLongestGoes) {
  ExpertCache cache = make_cache("lru", 3);
  cache.grow(3);
  for (const int expert : {0, 1, 2, 0}) use(cache, {0, expert});
  use(cache, {0, 3});
  EXPECT_FALSE(cache.slot_of({0, 1}));
  use(cache, {0, 4});
  EXPECT_FALSE(cache.slot_of({0, 2}));
  EXPECT_TRUE(cache.resident({0, 0}));
}

// Experts that are asked for in every step must outlive a stream of others that are asked for once.
TEST(FrequencyPolicies, OneUseDoesNotDisplaceManyUses) {
  for (const std::string_view name : {"lrfu", "slru", "s3fifo"}) {
    ExpertCache cache = make_cache(name, 8, {1, 1000});
    cache.grow(8);
    int next = 10;
    for (int step = 0; step < 40; ++step) {
      cache.begin_turn(0);
      if (step < 8 || step % 4 == 0) {
        for (const int expert : {0, 1, 2}) use(cache, {0, expert});
      }
      for (int i = 0; i < 3; ++i) use(cache, {0, next++});  // 12 newcomers between two uses
    }
    for (const int expert : {0, 1, 2}) EXPECT_TRUE(cache.resident({0, expert})) << name;
  }
}

TEST(LrfuPolicy, OldFameFades) {
  ExpertCache cache = make_cache("lrfu", 2, {1, 10});
  cache.grow(2);
  for (int step = 0; step < 50; ++step) {
    cache.begin_turn(0);
    use(cache, {0, 0});
  }
  for (int step = 0; step < 400; ++step) {
    cache.begin_turn(0);
    use(cache, {0, 1});
  }
  use(cache, {0, 2});
  EXPECT_FALSE(cache.slot_of({0, 0}));
}

TEST(S3FifoPolicy, WhoComesBackSoonSkipsTheQueueOfNewcomers) {
  ExpertCache cache = make_cache("s3fifo", 4, {1, 100});
  cache.grow(4);
  use(cache, {0, 50});
  for (int expert = 0; expert < 4; ++expert) use(cache, {0, expert});
  ASSERT_FALSE(cache.slot_of({0, 50}));
  use(cache, {0, 50});  // remembered: it comes to the main queue
  for (int expert = 10; expert < 20; ++expert) use(cache, {0, expert});
  EXPECT_TRUE(cache.resident({0, 50}));
}

// With fewer slots than one step uses, recency evicts what is needed next and hits nothing; turns
// keep what they can.
TEST(TurnsPolicy, HitsBelowOneStepsWorthOfSlots) {
  const auto hits = [](std::string_view name) {
    ExpertCache cache = make_cache(name, 10);
    cache.grow(10);
    int hits = 0;
    for (int step = 0; step < 100; ++step) {
      for (int layer = 0; layer < kGrid.num_layers; ++layer) {
        cache.begin_turn(layer);
        for (int expert = 0; expert < 4; ++expert) {  // 16 a step, the same each time
          hits += cache.resident({layer, expert}) ? 1 : 0;
          use(cache, {layer, expert});
        }
      }
    }
    return hits;
  };
  EXPECT_EQ(hits("lru"), 0);
  EXPECT_GT(hits("turns"), 500);  // of 1600
}

TEST(ExpertCacheDeathTest, HoldsItsInvariants) {
  ExpertCache cache = make_cache("lru", 2);
  cache.grow(2);
  const SlotIdx slot = cache.reserve({0, 0}).value();
  EXPECT_DEATH(cache.reserve({0, 0}), "has slot");
  EXPECT_DEATH(cache.evict(slot), "may not be evicted");
  EXPECT_DEATH(cache.commit(slot, Standing::kKept), "no old place");
  cache.commit(slot, Standing::kUsed);
  EXPECT_DEATH(cache.abandon(slot), "abandon");
  EXPECT_DEATH(cache.commit(slot, Standing::kUsed), "nobody is on the way");
  EXPECT_DEATH(cache.reserve({4, 0}), "grid");
  EXPECT_DEATH(cache.grow(1), "usable");
  const auto lease = cache.lease({0, 0});
  EXPECT_DEATH(cache.evict(slot), "may not be evicted");
}

}  // namespace
}  // namespace stoker
