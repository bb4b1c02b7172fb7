// Workers check and read blocks while the driver goes on: new blocks land, bad ones are read again,
// slots change hands. What ThreadSanitizer and the bytes themselves say of it.
#include <gtest/gtest.h>

#include <atomic>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <random>
#include <set>
#include <thread>

#include "prefetch/expert_manager.h"
#include "tests/support/block_source.h"
#include "tests/support/memory_reader.h"

namespace stoker {
namespace {

using test::BlockSource;
using test::MemoryArena;
using test::MemoryReader;
using test::ReadFault;

// Computes parts on threads of its own, in any order.
class Workers {
 public:
  explicit Workers(int num_threads) {
    for (int i = 0; i < num_threads; ++i) threads_.emplace_back([this] { work(); });
  }
  ~Workers() {
    {
      const std::lock_guard lock(mutex_);
      stopping_ = true;
    }
    wake_.notify_all();
    for (std::thread& thread : threads_) thread.join();
  }
  void post(const ExpertPart& part, ExpertId id) {
    {
      const std::lock_guard lock(mutex_);
      queue_.push_back({part, id});
    }
    num_posted_.fetch_add(1);
    wake_.notify_one();
  }
  void finish() const {
    while (num_done_.load() != num_posted_.load()) std::this_thread::yield();
  }
  int num_good() const { return num_good_.load(); }
  int num_wrong() const { return num_wrong_.load(); }

 private:
  struct Job {
    ExpertPart part;
    ExpertId id;
  };

  void work() {
    while (true) {
      Job job;
      {
        std::unique_lock lock(mutex_);
        wake_.wait(lock, [&] { return stopping_ || !queue_.empty(); });
        if (queue_.empty()) return;
        job = queue_.front();
        queue_.pop_front();
      }
      if (job.part.passes_guard()) {
        const bool gate_up = job.part.half == ExpertHalf::kGateUp;
        const QuantView& view = gate_up ? job.part.gate : job.part.down;
        const bool right = BlockSource::holds(job.id, job.part.row_begin,
                                              static_cast<const std::byte*>(view.payload));
        (right ? num_good_ : num_wrong_).fetch_add(1);
      }
      num_done_.fetch_add(1);
    }
  }

  std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<Job> queue_;
  bool stopping_ = false;
  std::atomic<int> num_posted_{0}, num_done_{0}, num_good_{0}, num_wrong_{0};
  std::vector<std::thread> threads_;
};

class ManagerUnderLoad : public testing::TestWithParam<int> {};

TEST_P(ManagerUnderLoad, NobodyReadsWhatIsNotThere) {
  constexpr int kLayers = 3, kExperts = 24, kTopK = 4, kBlocks = 6, kSteps = 60;
  const BlockSource source(4, 2, /*num_replicas=*/2);
  std::mt19937 random(11);
  test::MemoryReaderOptions reader_options{
      .seed = 3, .depth = 12, .shuffled = true, .max_per_reap = 4};
  reader_options.fault = [&](const BlockRead&, int replica) {
    if (replica == 0) return ReadFault::kNone;
    const unsigned dice = random() % 20;
    return dice == 0 ? ReadFault::kFails : dice == 1 ? ReadFault::kFlipsABit : ReadFault::kNone;
  };
  const MemoryArena arena(GetParam(), source.expert_bytes(0));
  MemoryReader reader(source, reader_options);
  const SteadyClock clock;
  std::vector<ExpertLayer> layers;
  for (int layer = 0; layer < kLayers; ++layer) layers.push_back({layer, kExperts, kTopK});
  ExpertManagerOptions options;
  options.prefetch.adaptive = false;
  const auto manager = ExpertManager::create(layers, source, reader, arena, clock, options).value();
  Workers workers(3);
  int num_expected = 0;
  std::vector<std::int32_t> rows(64);
  for (int step = 0; step < kSteps; ++step) {
    for (int layer = 0; layer < kLayers; ++layer) {
      const auto count = step % 7 == 0 ? kExperts / 2 + random() % (kExperts / 2) : kTopK;
      std::set<int> experts;
      while (experts.size() < count) experts.insert(static_cast<int>(random() % kExperts));
      std::vector<ExpertUse> uses;
      for (const int expert : experts) {
        ExpertUse use;
        use.expert = expert;
        use.rows = {rows.data(), 1 + random() % 3};
        uses.push_back(use);
      }
      const ExpertSetPtr set = manager->demand(layer, uses).value();
      std::vector<std::int32_t> guesses;
      for (int i = 0; i < 8; ++i) guesses.push_back(static_cast<std::int32_t>(random() % kExperts));
      manager->hint({layer, (layer + 1) % kLayers, 1, 1, 8, guesses});
      const bool give_up = random() % 16 == 0;
      std::vector<ExpertPart> parts(16);
      int before = workers.num_good();
      while (!set->exhausted()) {
        const std::size_t ready = set->take_ready(parts);
        for (std::size_t i = 0; i < ready; ++i)
          workers.post(parts[i], {layer, uses[parts[i].use].expert});
        if (give_up && random() % 8 == 0) break;
        if (ready > 0) continue;
        ASSERT_TRUE(set->status().ok()) << set->status().error().message();
        if (set->waits_for_slots()) {
          workers.finish();
          set->retire_taken();
        }
      }
      const bool whole = set->exhausted();
      workers.finish();
      if (whole) {
        num_expected = static_cast<int>(uses.size()) * kBlocks;
        EXPECT_EQ(workers.num_good() - before, num_expected);
      }
    }
  }
  EXPECT_EQ(workers.num_wrong(), 0);
  LayerCounters total;
  for (int layer = 0; layer < kLayers; ++layer) total += manager->counters(layer);
  EXPECT_GT(total.retried_blocks, 0);
  EXPECT_EQ(total.demand_bytes + total.prefetch_used_bytes + total.prefetch_wasted_bytes +
                manager->prefetched_unused_bytes(),
            reader.load().bytes_read);
}

INSTANTIATE_TEST_SUITE_P(Slots, ManagerUnderLoad, testing::Values(4, 9, 30, 72));

}  // namespace
}  // namespace stoker
