// Team: the one pool of threads that computes the token path. The driver thread, which made the
// Team, is worker 0 and works along whenever it waits.
//
// Tasks are handed out one by one in the order they were started, so who computes what depends on
// timing: a task's result must not depend on its worker. An idle worker spins for some
// microseconds, in case the next operation follows at once, and then sleeps: an idle program uses
// no CPU.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <functional>
#include <span>
#include <thread>
#include <vector>

#include "core/base/function_ref.h"

namespace stoker {

class Team {
 public:
  using Task = FunctionRef<void(int task, int worker)>;
  using ThreadInit = std::function<void(int worker)>;

  // `cpus`: worker w runs on logical CPU cpus[w % size]; empty: wherever the system puts it. The
  // driver is pinned too until the Team dies: a thread it creates meanwhile inherits that one CPU
  // and must set its own. `init` is called once in every worker, the driver included.
  explicit Team(int num_threads, std::span<const int> cpus = {}, const ThreadInit& init = {});
  ~Team();
  Team(const Team&) = delete;
  Team& operator=(const Team&) = delete;

  int num_threads() const { return static_cast<int>(threads_.size()) + 1; }

  // All of these are for the driver thread. What a task refers to lives until the next wait().

  // Hands out task(0 .. num_tasks-1) and returns at once. May be called again while tasks run.
  void start(int num_tasks, Task task);
  // Works until every task started is done. What the tasks wrote is visible afterwards.
  void wait();
  // start() and wait(). A single task runs on the driver without waking anyone.
  void run(int num_tasks, Task task);

 private:
  // Tasks are numbered over the Team's life; a job is the stretch of numbers of one start().
  struct Job {
    std::uint64_t begin = 0, end = 0;
    Task task;
  };
  static constexpr std::uint64_t kMaxJobs = 64;  // between two waits; start() waits when full

  void worker_loop(int worker);
  bool run_one(int worker);
  bool idle() const { return next_.load() == end_.load(); }
  void await_work();

  int spin_rounds_ = 0;
  std::array<Job, kMaxJobs> jobs_;
  std::uint64_t num_jobs_ = 0;                           // driver only
  alignas(64) std::atomic<std::uint64_t> first_job_{0};  // first one since the last wait()
  std::atomic<std::uint64_t> end_{0};                    // tasks started
  alignas(64) std::atomic<std::uint64_t> next_{0};       // tasks handed out
  alignas(64) std::atomic<std::uint64_t> done_{0};       // tasks finished
  alignas(64) std::atomic<std::uint32_t> wake_{0};       // changes when sleepers should look again
  std::atomic<int> sleepers_{0};
  std::atomic<std::uint32_t> driver_wake_{0};
  std::atomic<bool> driver_sleeps_{false};
  std::atomic<bool> stopping_{false};
  std::atomic<int> num_ready_{1};           // threads that have run `init`
  std::vector<unsigned long> driver_mask_;  // the driver's affinity before it was pinned
  std::vector<std::thread> threads_;        // workers 1 ..
};

}  // namespace stoker
