#include "storage/slot_arena.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>

#include <chrono>
#include <cstring>
#include <fstream>
#include <set>
#include <string>

#include "storage/block_reader.h"
#include "tests/support/extent_files.h"
#include "tests/support/temp_dir.h"
#include "tests/support/watchdog.h"

namespace stoker::storage {
namespace {

using ::testing::AllOf;
using ::testing::Each;
using ::testing::HasSubstr;
using ::testing::SizeIs;
using namespace std::chrono_literals;

using test::Watchdog;

constexpr std::int64_t kMiB = std::int64_t{1} << 20;

std::unique_ptr<HostSlotArena> created(const SlotArenaOptions& options) {
  auto arena = HostSlotArena::create(options);
  CHECK(arena.ok(), "{}", arena.error().message());
  return std::move(arena).value();
}

void wait_until_grown(const HostSlotArena& arena) {
  const Watchdog watchdog(60s);
  while (arena.num_usable() < arena.num_slots() && arena.status().ok()) {
    std::this_thread::sleep_for(1ms);
  }
}

// A number of /proc/self/status, in bytes.
std::int64_t own_memory(const std::string& wanted) {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    if (line.starts_with(wanted)) return std::stoll(line.substr(wanted.size() + 1)) * 1024;
  }
  return 0;
}

TEST(HostSlotArena, HoldsWhatTheBudgetHolds) {
  EXPECT_EQ(created({.budget_bytes = 10 * kMiB, .slot_bytes = 3 * kMiB})->num_slots(), 3);
  EXPECT_EQ(created({.budget_bytes = 9 * kMiB, .slot_bytes = 3 * kMiB})->num_slots(), 3);
  EXPECT_EQ(created({.budget_bytes = 9 * kMiB - 1, .slot_bytes = 3 * kMiB})->num_slots(), 2);
  const auto none = HostSlotArena::create({.budget_bytes = kMiB, .slot_bytes = 3 * kMiB});
  ASSERT_FALSE(none.ok());
  EXPECT_EQ(none.error().code(), ErrorCode::kInvalidArgument);
  EXPECT_THAT(none.error().message(), AllOf(HasSubstr("1048576"), HasSubstr("3145728")));
}

TEST(HostSlotArena, NothingIsThereBeforeTheStart) {
  const auto arena = created({.budget_bytes = 10 * kMiB, .slot_bytes = kMiB});
  EXPECT_EQ(arena->num_usable(), 0);
  EXPECT_TRUE(arena->status().ok());
}

// Slots do not overlap, none straddles a segment, each was prepared before it became usable, and
// what is mapped is what the budget says and no more.
TEST(HostSlotArena, GrowsInTheBackground) {
  const std::int64_t slot_bytes = 3 * kMiB + 4096;
  const auto arena =
      created({.budget_bytes = 400 * kMiB, .slot_bytes = slot_bytes, .segment_bytes = 100 * kMiB});
  ASSERT_EQ(arena->num_slots(), 133);
  const std::int64_t before = own_memory("VmData:");
  std::vector<std::span<std::byte>> stretches;
  std::vector<int> usable_then;
  arena->start([&](std::span<std::byte> memory) {
    stretches.push_back(memory);
    usable_then.push_back(arena->num_usable());
  });
  wait_until_grown(*arena);
  arena->stop();
  EXPECT_TRUE(arena->status().ok());
  ASSERT_EQ(arena->num_usable(), 133);
  // The thread's stack may be kept for the next one.
  EXPECT_LT(own_memory("VmData:") - before, 133 * slot_bytes + 32 * kMiB);

  std::size_t stretch = 0;
  std::int64_t bytes = 0;
  std::set<std::byte*> addresses;
  for (int i = 0; i < arena->num_slots(); ++i) {
    std::byte* const slot = arena->slot(i);
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(slot) % 4096, 0);
    if (slot == stretches[stretch].data() + stretches[stretch].size() ||
        slot < stretches[stretch].data() ||
        slot > stretches[stretch].data() + stretches[stretch].size()) {
      ASSERT_LT(++stretch, stretches.size());
      EXPECT_EQ(slot, stretches[stretch].data());
      EXPECT_EQ(usable_then[stretch], i);
    }
    EXPECT_LE(slot + slot_bytes, stretches[stretch].data() + stretches[stretch].size());
    EXPECT_LE(static_cast<std::int64_t>(stretches[stretch].size()), 64 * kMiB);
    std::memset(slot, i, static_cast<std::size_t>(slot_bytes));
    addresses.insert(slot);
    bytes += slot_bytes;
  }
  EXPECT_THAT(addresses, SizeIs(133));
  for (const auto& one : stretches) bytes -= std::ssize(one);
  EXPECT_EQ(bytes, 0);
  for (int i = 0; i < arena->num_slots(); ++i) {
    const std::span<std::byte> slot(arena->slot(i), static_cast<std::size_t>(slot_bytes));
    EXPECT_EQ(slot.front(), static_cast<std::byte>(i));
    EXPECT_EQ(slot.back(), static_cast<std::byte>(i));
  }
}

TEST(HostSlotArena, GivesItsMemoryBack) {
  const std::int64_t before = own_memory("VmRSS:");
  for (int round = 0; round < 4; ++round) {
    const auto arena = created({.budget_bytes = 256 * kMiB, .slot_bytes = 5 * kMiB});
    arena->start({});
    wait_until_grown(*arena);
    EXPECT_GT(own_memory("VmRSS:") - before, 200 * kMiB);
  }
  EXPECT_LT(own_memory("VmRSS:") - before, 64 * kMiB);
}

TEST(HostSlotArena, StopsInTheMiddle) {
  const Watchdog watchdog(60s);
  const auto arena = created({.budget_bytes = 2048 * kMiB, .slot_bytes = 64 * kMiB});
  arena->start([&](std::span<std::byte>) { std::this_thread::sleep_for(5ms); });
  while (arena->num_usable() == 0) std::this_thread::yield();
  arena->stop();
  EXPECT_LT(arena->num_usable(), arena->num_slots());
  *arena->slot(0) = std::byte{1};
}

// Memory that the system refuses ends the growth, not the program.
TEST(HostSlotArena, SaysWhenMemoryRunsShort) {
  rlimit before{};
  ASSERT_EQ(::getrlimit(RLIMIT_DATA, &before), 0);
  const auto arena =
      created({.budget_bytes = 4096 * kMiB, .slot_bytes = 16 * kMiB, .segment_bytes = 64 * kMiB});
  const rlimit limit{static_cast<rlim_t>(own_memory("VmData:") + 300 * kMiB), before.rlim_max};
  ASSERT_EQ(::setrlimit(RLIMIT_DATA, &limit), 0);
  arena->start({});
  wait_until_grown(*arena);
  arena->stop();
  ASSERT_EQ(::setrlimit(RLIMIT_DATA, &before), 0);
  EXPECT_GT(arena->num_usable(), 4);
  EXPECT_LT(arena->num_usable(), 20);
  ASSERT_FALSE(arena->status().ok());
  EXPECT_EQ(arena->status().error().code(), ErrorCode::kResource);
  EXPECT_THAT(arena->status().error().message(), HasSubstr("Cannot allocate memory"));
  std::memset(arena->slot(arena->num_usable() - 1), 1, 16 * kMiB);
}

// A reader registers the slots as they come and reads into them meanwhile.
TEST(HostSlotArena, GrowsWhileAReaderReads) {
  const test::TempDir dir;
  const test::ExtentFiles files({.dirs = {dir.path()}, .num_experts = 32});
  const std::int64_t slot_bytes = 4 * files.block_bytes();
  const Watchdog watchdog(60s);
  for (const IoChoice io : {IoChoice::kUring, IoChoice::kPread}) {
    const auto arena = created({.budget_bytes = 256 * kMiB, .slot_bytes = slot_bytes});
    auto reader = open_reader(files, {.io = io});
    ASSERT_TRUE(reader.ok()) << reader.error().message();
    arena->start(
        [&](std::span<std::byte> memory) { EXPECT_TRUE((*reader)->register_memory(memory).ok()); });
    int reads = 0;
    std::array<BlockDone, 1> done;
    for (bool last = false; !last;) {
      last = arena->num_usable() == arena->num_slots();
      if (arena->num_usable() == 0) continue;
      BlockRead read;
      const int block = reads++ % files.num_blocks();
      read.id = files.id_of(block);
      read.block = files.block_of(block);
      read.dst = arena->slot(reads * 37 % arena->num_usable());
      (*reader)->submit({&read, 1});
      while ((*reader)->reap(done) == 0) (*reader)->wait(100ms);
      ASSERT_EQ(done[0].outcome, ReadOutcome::kRead);
      ASSERT_TRUE(files.holds(block, {read.dst, static_cast<std::size_t>(files.block_bytes())}));
    }
    arena->stop();
    EXPECT_THAT((*reader)->notices(), SizeIs(0));
    reader->reset();
  }
}

}  // namespace
}  // namespace stoker::storage
