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

TEST_P(EveryPolicy, AgreesWithANaiveCacheOnRandomOperations) {
  using State = NaiveCache::State;
  constexpr int kSlots = 13;
  for (unsigned seed = 1; seed <= 20; ++seed) {
    std::mt19937 random(seed);
    const auto pick = [&](int n) { return static_cast<int>(random() % static_cast<unsigned>(n)); };
    ExpertCache cache = make_cache(GetParam(), kSlots);
    NaiveCache naive;
    std::vector<ExpertLease> leases;
    int layer = 0;
    for (int step = 0; step < 3000; ++step) {
      const ExpertId id{pick(kGrid.num_layers), pick(kGrid.num_experts)};
      switch (pick(9)) {
        case 0: {
          naive.num_usable = std::min(kSlots, naive.num_usable + pick(3));
          cache.grow(naive.num_usable);
          break;
        }
        case 1:
        case 2: {  // reserve
          if (naive.find(id)) break;
          const bool full = static_cast<int>(naive.slots.size()) == naive.num_usable;
          const bool may_evict = pick(4) != 0;
          const auto victim = full && may_evict ? cache.victim() : std::nullopt;
          const auto slot = may_evict ? cache.reserve(id) : cache.reserve_free(id);
          const bool can = !full || (may_evict && naive.count(State::kResident, false) > 0);
          ASSERT_EQ(slot.has_value(), can);
          if (!slot) break;
          if (full) {
            ASSERT_EQ(slot, victim);
            ASSERT_EQ(naive.slots.at(*slot).leases, 0);
            ASSERT_EQ(naive.slots.at(*slot).state, State::kResident);
            naive.slots.erase(*slot);
          }
          ASSERT_FALSE(naive.slots.contains(*slot));
          ASSERT_LT(*slot, naive.num_usable);
          naive.slots[*slot] = {id, State::kInFlight};
          break;
        }
        case 3:
        case 4: {  // the arrival or the end of somebody in flight
          std::vector<SlotIdx> in_flight;
          for (const auto& [slot, entry] : naive.slots) {
            if (entry.state == State::kInFlight) in_flight.push_back(slot);
          }
          if (in_flight.empty()) break;
          const SlotIdx slot = in_flight[pick(static_cast<int>(in_flight.size()))];
          const int how = pick(4);
          if (how == 0) {
            cache.abandon(slot);
            naive.slots.erase(slot);
            break;
          }
          naive.slots[slot].state = State::kResident;
          if (how == 1) {
            leases.push_back(cache.commit_leased(slot));
            ++naive.slots[slot].leases;
          } else {
            const Standing standings[] = {Standing::kUsed, Standing::kGuessed, Standing::kCold};
            cache.commit(slot, standings[pick(3)]);
          }
          break;
        }
        case 5: {  // lease
          auto lease = cache.lease(id);
          const auto slot = naive.find(id);
          ASSERT_EQ(lease.has_value(), slot && naive.slots[*slot].state == State::kResident);
          if (!lease) break;
          ASSERT_EQ(lease->slot(), *slot);
          ++naive.slots[*slot].leases;
          leases.push_back(std::move(*lease));
          break;
        }
        case 6: {  // release
          if (leases.empty()) break;
          std::swap(leases[pick(static_cast<int>(leases.size()))], leases.back());
          --naive.slots[leases.back().slot()].leases;
          const Standing standings[] = {Standing::kUsed, Standing::kGuessed, Standing::kCold};
          leases.back().release(standings[pick(3)]);
          leases.pop_back();
          break;
        }
        case 7: {  // evict or rank somebody evictable
          const auto slot = cache.victim();
          ASSERT_EQ(slot.has_value(), naive.count(State::kResident, false) > 0);
          if (!slot) break;
          if (pick(2) == 0) {
            cache.rank(*slot, Standing::kKept);
            ASSERT_TRUE(cache.victim().has_value());
          } else {
            cache.evict(*slot);
            naive.slots.erase(*slot);
          }
          break;
        }
        case 8:
          layer = (layer + 1) % kGrid.num_layers;
          cache.begin_turn(layer);
          break;
      }
      ASSERT_EQ(cache.num_in_flight(), naive.count(State::kInFlight, false));
      ASSERT_EQ(cache.num_leased(), naive.count(State::kResident, true));
      ASSERT_EQ(cache.num_evictable(), naive.count(State::kResident, false));
      ASSERT_EQ(cache.num_free(), naive.num_usable - static_cast<int>(naive.slots.size()));
      ASSERT_EQ(cache.slot_of(id), naive.find(id));
      for (const auto& [slot, entry] : naive.slots) {
        ASSERT_EQ(cache.expert_in(slot), entry.id);
        ASSERT_EQ(cache.resident(entry.id), entry.state == State::kResident);
        ASSERT_EQ(cache.in_flight(entry.id), entry.state == State::kInFlight);
      }
    }
    leases.clear();
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
