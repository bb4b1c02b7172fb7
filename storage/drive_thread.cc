#include "storage/drive_thread.h"

#include <pthread.h>

#include <algorithm>
#include <iterator>
#include <utility>

namespace stoker::storage {

void Outbox::post(std::vector<BlockDone>& done) {
  if (done.empty()) return;
  {
    const std::lock_guard lock(mutex_);
    std::move(done.begin(), done.end(), std::back_inserter(done_));
  }
  done.clear();
  filled_.notify_one();
}

std::size_t Outbox::take(std::span<BlockDone> out) {
  const std::lock_guard lock(mutex_);
  const std::size_t count = std::min(out.size(), done_.size());
  const auto end = done_.begin() + static_cast<std::ptrdiff_t>(count);
  std::move(done_.begin(), end, out.begin());
  done_.erase(done_.begin(), end);
  return count;
}

void Outbox::wait(std::chrono::microseconds timeout) {
  std::unique_lock lock(mutex_);
  filled_.wait_for(lock, timeout, [&] { return !done_.empty(); });
}

DriveThread::DriveThread(const ExtentSource& source, std::unique_ptr<Engine> engine,
                         DriveLimits limits, Outbox& outbox)
    : drive_(source, std::move(engine), limits, load_),
      outbox_(outbox),
      thread_([this] { run(); }) {}

DriveThread::~DriveThread() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
    knock();
  }
  thread_.join();
}

void DriveThread::stage(const QueuedRead& read) {
  load_.queued_bytes(read.read.read_class) += read.bytes;
  staged_.push_back({Verb::kRead, read});
}

void DriveThread::stage_promote(std::uint32_t tag, ReadClass read_class, float priority) {
  Wish wish{Verb::kPromote, {}};
  wish.read.read.tag = tag;
  wish.read.read.read_class = read_class;
  wish.read.read.priority = priority;
  staged_.push_back(wish);
}

void DriveThread::stage_cancel(std::uint32_t tag) {
  Wish wish{Verb::kCancel, {}};
  wish.read.read.tag = tag;
  staged_.push_back(wish);
}

void DriveThread::flush() {
  if (staged_.empty()) return;
  {
    const std::lock_guard lock(mutex_);
    wishes_.insert(wishes_.end(), staged_.begin(), staged_.end());
    knock();
  }
  staged_.clear();
}

Status DriveThread::register_memory(std::span<std::byte> memory) {
  Registration registration{memory, {}};
  std::future<Status> done = registration.done.get_future();
  {
    const std::lock_guard lock(mutex_);
    registrations_.push_back(&registration);
    knock();
  }
  return done.get();
}

void DriveThread::knock() {
  if (!std::exchange(knocked_, true)) drive_.engine().wake();
}

bool DriveThread::take_wishes() {
  bool stop = false;
  {
    const std::lock_guard lock(mutex_);
    std::swap(wishes_, taken_);
    std::swap(registrations_, taken_registrations_);
    knocked_ = false;
    stop = stop_;
  }
  for (const Wish& wish : taken_) {
    const BlockRead& read = wish.read.read;
    switch (wish.verb) {
      case Verb::kRead:
        drive_.add(wish.read);
        break;
      case Verb::kPromote:
        drive_.promote(read.tag, read.read_class, read.priority);
        break;
      case Verb::kCancel:
        drive_.cancel(read.tag);
        break;
    }
  }
  taken_.clear();
  return !stop;
}

void DriveThread::run() {
  pthread_setname_np(pthread_self(), "stoker-io");
  drive_.engine().bind();
  while (true) {
    // 1. Wishes, in the order in which they came.
    const bool go_on = take_wishes();
    if (!go_on) drive_.cancel_all();
    // 2. Reads before memory: registering some takes milliseconds, in which the drive has work.
    drive_.issue();
    outbox_.post(drive_.done());
    for (Registration* registration : taken_registrations_) {
      registration->done.set_value(drive_.engine().register_memory(registration->memory));
    }
    taken_registrations_.clear();
    if (!go_on && drive_.idle()) return;
    // 3. Sleep until something completes or somebody knocks.
    drive_.reap(/*wait=*/true);
    outbox_.post(drive_.done());
  }
}

}  // namespace stoker::storage
