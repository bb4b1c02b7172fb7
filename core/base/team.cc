#include "core/base/team.h"

#include <pthread.h>
#include <sched.h>

#include <algorithm>

#include "core/base/check.h"

namespace stoker {
namespace {

// About 20 us of looking before sleeping: longer than the driver's scalar work between two
// operations, shorter than a sleep and wake-up through the kernel (50-80 us). Where there are more
// threads than CPUs, looking only takes the time from whoever could work.
constexpr int kSpinRounds = 500;

void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

// A machine may have more CPUs than cpu_set_t has bits.
constexpr std::size_t kMaskWords = 128;
constexpr std::size_t kWordBits = 8 * sizeof(unsigned long);
constexpr std::size_t kMaskBytes = kMaskWords * sizeof(unsigned long);

std::vector<unsigned long> current_mask() {
  std::vector<unsigned long> mask(kMaskWords);
  const int rc =
      pthread_getaffinity_np(pthread_self(), kMaskBytes, reinterpret_cast<cpu_set_t*>(mask.data()));
  if (rc != 0) mask.clear();
  return mask;
}

void set_mask(const std::vector<unsigned long>& mask) {
  // Refused in some containers: then the thread runs where the system puts it.
  if (mask.empty()) return;
  (void)pthread_setaffinity_np(pthread_self(), kMaskBytes,
                               reinterpret_cast<const cpu_set_t*>(mask.data()));
}

void pin(int cpu) {
  CHECK(cpu >= 0 && static_cast<std::size_t>(cpu) < kMaskWords * kWordBits, "cpu {}", cpu);
  std::vector<unsigned long> mask(kMaskWords);
  mask[cpu / kWordBits] |= 1ul << (cpu % kWordBits);
  set_mask(mask);
}

std::size_t count_cpus(const std::vector<unsigned long>& mask) {
  std::size_t count = 0;
  for (const unsigned long word : mask)
    count += static_cast<std::size_t>(__builtin_popcountl(word));
  return count;
}

}  // namespace

Team::Team(int num_threads, std::span<const int> cpus, const ThreadInit& init) {
  CHECK(num_threads > 0, "{} threads", num_threads);
  const std::vector<unsigned long> mask = current_mask();
  if (count_cpus(mask) >= static_cast<std::size_t>(num_threads)) spin_rounds_ = kSpinRounds;
  if (!cpus.empty()) {
    driver_mask_ = mask;
    pin(cpus[0]);
  }
  for (int worker = 1; worker < num_threads; ++worker) {
    const int cpu = cpus.empty() ? -1 : cpus[worker % cpus.size()];
    threads_.emplace_back([this, worker, cpu, &init] {
      if (cpu >= 0) pin(cpu);
      if (init) init(worker);
      num_ready_.fetch_add(1);
      num_ready_.notify_one();
      worker_loop(worker);
    });
  }
  if (init) init(0);
  for (int ready = num_ready_.load(); ready < num_threads; ready = num_ready_.load()) {
    num_ready_.wait(ready);
  }
}

Team::~Team() {
  wait();
  stopping_.store(true);
  wake_.fetch_add(1);
  wake_.notify_all();
  for (std::thread& thread : threads_) thread.join();
  set_mask(driver_mask_);
}

void Team::start(int num_tasks, Task task) {
  if (num_tasks <= 0) return;
  if (num_jobs_ - first_job_.load(std::memory_order_relaxed) == kMaxJobs) wait();
  const std::uint64_t begin = end_.load(std::memory_order_relaxed);
  jobs_[num_jobs_ % kMaxJobs] = Job{begin, begin + num_tasks, task};
  ++num_jobs_;
  // Sequentially consistent against await_work(): either we see the sleeper or it sees the tasks.
  end_.store(begin + num_tasks);
  if (sleepers_.load() > 0) {
    wake_.fetch_add(1);
    wake_.notify_all();
  }
}

void Team::run(int num_tasks, Task task) {
  if (num_tasks == 1 && idle()) {
    task(0, 0);
    return;
  }
  start(num_tasks, task);
  wait();
}

bool Team::run_one(int worker) {
  std::uint64_t ticket = next_.load();
  do {
    if (ticket == end_.load()) return false;
  } while (!next_.compare_exchange_weak(ticket, ticket + 1));
  // Our task is unfinished, so no wait() can end and none of the jobs up to ours is overwritten.
  std::uint64_t index = first_job_.load();
  while (ticket >= jobs_[index % kMaxJobs].end) ++index;
  const Job& job = jobs_[index % kMaxJobs];
  job.task(static_cast<int>(ticket - job.begin), worker);
  if (done_.fetch_add(1) + 1 == end_.load() && driver_sleeps_.load()) {
    driver_wake_.fetch_add(1);
    driver_wake_.notify_one();
  }
  return true;
}

void Team::wait() {
  while (run_one(0)) {
  }
  const std::uint64_t end = end_.load(std::memory_order_relaxed);
  for (int round = 0; round < spin_rounds_ && done_.load() != end; ++round) relax();
  while (done_.load() != end) {
    const std::uint32_t seen = driver_wake_.load();
    driver_sleeps_.store(true);
    if (done_.load() != end) driver_wake_.wait(seen);
    driver_sleeps_.store(false);
  }
  first_job_.store(num_jobs_);
}

void Team::await_work() {
  for (int round = 0; round < spin_rounds_; ++round) {
    if (!idle() || stopping_.load()) return;
    relax();
  }
  const std::uint32_t seen = wake_.load();
  sleepers_.fetch_add(1);
  if (idle() && !stopping_.load()) wake_.wait(seen);
  sleepers_.fetch_sub(1);
}

void Team::worker_loop(int worker) {
  while (!stopping_.load()) {
    if (!run_one(worker)) await_work();
  }
}

}  // namespace stoker
