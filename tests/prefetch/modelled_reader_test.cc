#include "prefetch/modelled_reader.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/support/block_source.h"

namespace stoker {
namespace {

using test::BlockSource;
using testing::ElementsAre;

// Blocks of 4096 bytes at 4.096 bytes a microsecond: 1000 us each, after 100 us of latency.
constexpr ModelledDrive kDrive{.bytes_per_second = 4.096e6, .latency_us = 100, .depth = 2};

class ModelledReaderTest : public testing::Test {
 protected:
  ModelledReader reader(std::vector<ModelledDrive> drives = {kDrive}) {
    ModelledReaderOptions options;
    options.drives = std::move(drives);
    options.max_speculative_bytes = 4096;
    options.sleep = [&](std::chrono::microseconds us) { clock_.advance(us.count()); };
    return ModelledReader(source_, clock_, options);
  }
  static BlockRead read(std::uint32_t tag, ReadClass read_class = ReadClass::kDemand,
                        float priority = 0.0f, int expert = 0) {
    BlockRead read;
    read.tag = tag;
    read.id = {0, expert};
    read.read_class = read_class;
    read.priority = priority;
    return read;
  }
  // Moves the clock from event to event; (tag, time) of every completion.
  std::vector<std::pair<int, int>> run(ModelledReader& reader) {
    std::vector<std::pair<int, int>> finished;
    while (true) {
      std::vector<BlockDone> done(10);
      const std::size_t count = reader.reap(done);
      for (std::size_t i = 0; i < count; ++i)
        finished.emplace_back(done[i].tag, static_cast<int>(clock_.now_us()));
      if (reader.next_event_us() == ModelledReader::kNever) return finished;
      clock_.advance_to(reader.next_event_us());
    }
  }

  BlockSource source_{1, 1};
  ManualClock clock_;
};

TEST_F(ModelledReaderTest, DepthHidesLatencyAndBandwidthIsShared) {
  ModelledReader reader = this->reader();
  reader.submit(std::vector{read(1), read(2), read(3), read(4)});
  EXPECT_THAT(run(reader), ElementsAre(std::pair(1, 1100), std::pair(2, 2100), std::pair(3, 3100),
                                       std::pair(4, 4100)));
  EXPECT_EQ(reader.load().bytes_read, 4 * 4096);
  EXPECT_EQ(reader.load().busy_us, 4100);
  EXPECT_EQ(reader.load().reading_bytes, 0);
}

TEST_F(ModelledReaderTest, AtDepthOneEveryReadPaysTheLatency) {
  ModelledReader reader = this->reader({{4.096e6, 100, 1}});
  reader.submit(std::vector{read(1), read(2)});
  EXPECT_THAT(run(reader), ElementsAre(std::pair(1, 1100), std::pair(2, 2200)));
}

TEST_F(ModelledReaderTest, WhatIsIssuedInBetweenStartsInBetween) {
  ModelledReader reader = this->reader();
  reader.submit(std::vector{read(1), read(2), read(3)});
  clock_.advance(10000);  // nobody looked meanwhile
  std::vector<BlockDone> done(10);
  EXPECT_EQ(reader.reap(done), 3u);
  EXPECT_EQ(reader.load().busy_us, 3100);
  EXPECT_EQ(reader.next_event_us(), ModelledReader::kNever);
}

TEST_F(ModelledReaderTest, DrivesWorkSideBySide) {
  ModelledReader reader = this->reader({kDrive, {8.192e6, 0, 1}});
  reader.submit(std::vector{read(1), read(2, ReadClass::kDemand, 0.0f, 1), read(3)});
  EXPECT_THAT(run(reader), ElementsAre(std::pair(2, 500), std::pair(1, 1100), std::pair(3, 2100)));
  EXPECT_EQ(reader.load().bytes_per_second, 4.096e6 + 8.192e6);
}

TEST_F(ModelledReaderTest, ClassThenPriorityThenFirstCome) {
  ModelledReader reader = this->reader({{4.096e6, 0, 1}});
  reader.submit(std::vector{
      read(1), read(2, ReadClass::kTwoAhead, 9.0f), read(3, ReadClass::kNextLayer, 1.0f),
      read(4, ReadClass::kNextLayer, 2.0f), read(5, ReadClass::kDemand, -1.0f), read(6), read(7)});
  std::vector<int> order;
  for (const auto& [tag, time] : run(reader)) order.push_back(tag);
  EXPECT_THAT(order, ElementsAre(1, 6, 7, 5, 4, 3, 2));
}

TEST_F(ModelledReaderTest, PromoteMovesWhatHasNotBeenIssued) {
  ModelledReader reader = this->reader({{4.096e6, 0, 1}});
  reader.submit(std::vector{read(1), read(2), read(3, ReadClass::kWarm)});
  EXPECT_EQ(reader.load().queued_demand_bytes, 4096);
  EXPECT_EQ(reader.load().queued_speculative_bytes, 4096);
  reader.promote(3, ReadClass::kDemand, 1.0f);
  reader.promote(99, ReadClass::kDemand, 1.0f);  // unknown: ignored
  EXPECT_EQ(reader.load().queued_demand_bytes, 2 * 4096);
  EXPECT_EQ(reader.load().queued_speculative_bytes, 0);
  EXPECT_THAT(run(reader), ElementsAre(std::pair(1, 1000), std::pair(3, 2000), std::pair(2, 3000)));
}

TEST_F(ModelledReaderTest, CancelTakesBackWhatHasNotBeenIssued) {
  ModelledReader reader = this->reader({{4.096e6, 0, 1}});
  reader.submit(std::vector{read(1), read(2)});
  reader.cancel(1);
  reader.cancel(2);
  reader.cancel(99);
  std::vector<BlockDone> done(4);
  ASSERT_EQ(reader.reap(done), 1u);
  EXPECT_EQ(done[0].tag, 2u);
  EXPECT_EQ(done[0].outcome, ReadOutcome::kCancelled);
  EXPECT_THAT(run(reader), ElementsAre(std::pair(1, 1000)));
  EXPECT_EQ(reader.load().bytes_read, 4096);
}

// A demand that comes while guesses are read waits for one block, not for all of them.
TEST_F(ModelledReaderTest, LittleIsReadOnSpeculationAtOnce) {
  ModelledReader reader = this->reader({{4.096e6, 0, 8}});
  std::vector<BlockRead> guesses;
  for (std::uint32_t tag = 1; tag <= 6; ++tag) guesses.push_back(read(tag, ReadClass::kNextLayer));
  reader.submit(guesses);
  EXPECT_EQ(reader.load().reading_bytes, 4096);
  clock_.advance(100);
  reader.submit(std::vector{read(10)});
  EXPECT_THAT(run(reader).at(1), (std::pair(10, 2000)));
}

TEST_F(ModelledReaderTest, BytesAreDeliveredWhenTheReadCompletes) {
  std::vector<std::uint32_t> delivered;
  ModelledReaderOptions options;
  options.drives = {kDrive};
  options.deliver = [&](const BlockRead& read) -> Status {
    delivered.push_back(read.tag);
    if (read.tag == 2) return Error(ErrorCode::kIo, "gone");
    return {};
  };
  ModelledReader reader(source_, clock_, options);
  reader.submit(std::vector{read(1), read(2)});
  EXPECT_TRUE(delivered.empty());
  clock_.advance(5000);
  std::vector<BlockDone> done(4);
  ASSERT_EQ(reader.reap(done), 2u);
  EXPECT_THAT(delivered, ElementsAre(1u, 2u));
  EXPECT_EQ(done[0].outcome, ReadOutcome::kRead);
  EXPECT_EQ(done[1].outcome, ReadOutcome::kFailed);
  EXPECT_EQ(done[1].status.error().message(), "gone");
  EXPECT_EQ(reader.load().bytes_read, 4096);
}

TEST_F(ModelledReaderTest, WaitSleepsToTheNextEventOrItsTimeout) {
  ModelledReader reader = this->reader();
  reader.wait(std::chrono::microseconds(100));
  EXPECT_EQ(clock_.now_us(), 0);  // nothing is under way
  reader.submit(std::vector{read(1)});
  reader.wait(std::chrono::microseconds(100));
  EXPECT_EQ(clock_.now_us(), 100);
  reader.wait(std::chrono::microseconds(100000));
  EXPECT_EQ(clock_.now_us(), 1100);
  reader.wait(std::chrono::microseconds(100000));
  EXPECT_EQ(clock_.now_us(), 1100);  // reap() has something
}

}  // namespace
}  // namespace stoker
