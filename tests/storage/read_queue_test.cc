#include "storage/read_queue.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <random>

namespace stoker::storage {
namespace {

using ::testing::ElementsAre;

QueuedRead wish(std::uint32_t tag, ReadClass read_class, float priority = 0.0f) {
  QueuedRead read;
  read.read.tag = tag;
  read.read.read_class = read_class;
  read.read.priority = priority;
  return read;
}

std::vector<std::uint32_t> drain(ReadQueue& queue) {
  std::vector<std::uint32_t> tags;
  while (!queue.empty()) tags.push_back(queue.pop().read.tag);
  return tags;
}

TEST(ReadQueue, ClassThenPriorityThenTurn) {
  ReadQueue queue;
  queue.push(wish(1, ReadClass::kWarm, 9.0f));
  queue.push(wish(2, ReadClass::kNextLayer, 1.0f));
  queue.push(wish(3, ReadClass::kDemand, 1.0f));
  queue.push(wish(4, ReadClass::kDemand, 2.0f));
  queue.push(wish(5, ReadClass::kDemand, 1.0f));
  queue.push(wish(6, ReadClass::kTwoAhead, 5.0f));
  EXPECT_EQ(queue.top().read.tag, 4);
  EXPECT_THAT(drain(queue), ElementsAre(4, 3, 5, 2, 6, 1));
}

TEST(ReadQueue, PromotedKeepsItsTurn) {
  ReadQueue queue;
  queue.push(wish(1, ReadClass::kNextLayer));
  queue.push(wish(2, ReadClass::kDemand));
  queue.promote(1, ReadClass::kDemand, 0.0f);
  EXPECT_THAT(drain(queue), ElementsAre(1, 2));
}

TEST(ReadQueue, TagsAreFreeAfterwards) {
  ReadQueue queue;
  queue.push(wish(1, ReadClass::kWarm));
  EXPECT_EQ(queue.find(2), nullptr);
  EXPECT_EQ(queue.find(1)->read.tag, 1);
  EXPECT_EQ(queue.remove(1).read.tag, 1);
  EXPECT_EQ(queue.find(1), nullptr);
  queue.push(wish(1, ReadClass::kWarm));
  EXPECT_THAT(drain(queue), ElementsAre(1));
}

// Against a sorted list, through many changes.
TEST(ReadQueue, KeepsOrderThroughPromotionsAndRemovals) {
  std::mt19937 random(7);
  ReadQueue queue;
  std::vector<QueuedRead> model;  // in order of their turns
  std::uint32_t next_tag = 0;
  const auto any_class = [&] { return static_cast<ReadClass>(random() % kNumReadClasses); };
  const auto any_priority = [&] { return static_cast<float>(random() % 4); };
  const auto best = [&] {
    return std::min_element(model.begin(), model.end(), [](const auto& a, const auto& b) {
      if (a.read.read_class != b.read.read_class) return a.read.read_class < b.read.read_class;
      return a.read.priority > b.read.priority;
    });
  };
  for (int i = 0; i < 20'000; ++i) {
    const unsigned action = random() % 8;
    if (model.empty() || action < 3) {
      model.push_back(wish(next_tag++, any_class(), any_priority()));
      queue.push(model.back());
    } else if (action < 5) {
      ASSERT_EQ(queue.pop().read.tag, best()->read.tag);
      model.erase(best());
    } else {
      const auto at = model.begin() + static_cast<std::ptrdiff_t>(random() % model.size());
      if (action == 5) {
        ASSERT_EQ(queue.remove(at->read.tag).read.priority, at->read.priority);
        model.erase(at);
      } else {
        at->read.read_class = any_class();
        at->read.priority = any_priority();
        queue.promote(at->read.tag, at->read.read_class, at->read.priority);
      }
    }
    ASSERT_EQ(queue.size(), model.size());
  }
}

}  // namespace
}  // namespace stoker::storage
