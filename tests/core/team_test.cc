#include "core/base/team.h"

#include <gtest/gtest.h>
#include <sched.h>

#include <chrono>
#include <ctime>
#include <numeric>
#include <set>
#include <thread>

namespace stoker {
namespace {

class TeamTest : public ::testing::TestWithParam<int> {};
INSTANTIATE_TEST_SUITE_P(Threads, TeamTest, ::testing::Values(1, 2, 3, 5));

TEST_P(TeamTest, EveryTaskRunsOnceAndItsWritesAreSeen) {
  Team team(GetParam());
  for (int num_tasks = 0; num_tasks < 50; ++num_tasks) {
    std::vector<int> runs(num_tasks);  // not atomic: the join must order the writes
    team.run(num_tasks, [&](int task, int worker) {
      EXPECT_GE(worker, 0);
      EXPECT_LT(worker, team.num_threads());
      ++runs[task];
    });
    EXPECT_EQ(std::accumulate(runs.begin(), runs.end(), 0), num_tasks);
  }
}

TEST_P(TeamTest, ManySmallRunsInARow) {
  Team team(GetParam());
  std::vector<int> sums(64);
  for (int round = 0; round < 3000; ++round) {
    team.run(1 + round % 64, [&](int task, int) { sums[task] += round; });
  }
  EXPECT_GT(sums[0], sums[63]);
}

TEST_P(TeamTest, TasksMayBeStartedWhileOthersRun) {
  Team team(GetParam());
  std::vector<int> a(100), b(200), c(1);
  const auto first = [&](int task, int) { a[task] += 1; };
  const auto second = [&](int task, int) { b[task] += 2; };
  const auto third = [&](int task, int) { c[task] += 3; };
  for (int round = 0; round < 20; ++round) {
    team.start(100, first);
    team.start(200, second);
    team.start(1, third);
    team.wait();
    EXPECT_EQ(std::accumulate(a.begin(), a.end(), 0), 100 * (round + 1));
    EXPECT_EQ(std::accumulate(b.begin(), b.end(), 0), 400 * (round + 1));
    EXPECT_EQ(c[0], 3 * (round + 1));
  }
}

TEST_P(TeamTest, MoreStartsThanThereIsRoomFor) {
  Team team(GetParam());
  std::atomic<int> count{0};
  const auto task = [&](int, int) { count.fetch_add(1, std::memory_order_relaxed); };
  for (int i = 0; i < 1000; ++i) team.start(3, task);
  team.wait();
  EXPECT_EQ(count.load(), 3000);
}

TEST_P(TeamTest, WakesAfterSleeping) {
  Team team(GetParam());
  for (int round = 0; round < 5; ++round) {
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
    std::vector<int> runs(16);
    team.run(16, [&](int task, int) { ++runs[task]; });
    EXPECT_EQ(std::accumulate(runs.begin(), runs.end(), 0), 16);
  }
}

TEST_P(TeamTest, InitRunsOnceInEveryThread) {
  std::vector<std::thread::id> ids(GetParam());
  Team team(GetParam(), {}, [&](int worker) { ids[worker] = std::this_thread::get_id(); });
  EXPECT_EQ(std::set<std::thread::id>(ids.begin(), ids.end()).size(), ids.size());
  EXPECT_EQ(ids[0], std::this_thread::get_id());
}

TEST(Team, IdleThreadsUseNoCpu) {
  Team team(3);
  team.run(8, [](int, int) {});
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  const std::clock_t before = std::clock();  // of the process
  std::this_thread::sleep_for(std::chrono::milliseconds(200));
  EXPECT_LT(std::clock() - before, CLOCKS_PER_SEC / 20);
}

TEST(Team, WorkersRunWhereTheyArePinnedAndTheDriverIsGivenBack) {
  cpu_set_t before;
  ASSERT_EQ(sched_getaffinity(0, sizeof before, &before), 0);
  int last = 0;
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (CPU_ISSET(cpu, &before)) last = cpu;
  }
  {
    const int cpus[] = {last};
    std::vector<int> seen(2, -1);
    Team team(2, cpus, [&](int worker) { seen[worker] = sched_getcpu(); });
    EXPECT_EQ(seen, std::vector<int>({last, last}));
  }
  cpu_set_t after;
  ASSERT_EQ(sched_getaffinity(0, sizeof after, &after), 0);
  EXPECT_TRUE(CPU_EQUAL(&before, &after));
}

}  // namespace
}  // namespace stoker
