#include "storage/pread_engine.h"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <system_error>

namespace stoker::storage {

Result<std::unique_ptr<PreadEngine>> PreadEngine::open(std::span<const int> files,
                                                       int num_threads) {
  CHECK(num_threads > 0);
  std::unique_ptr<PreadEngine> engine(new PreadEngine(files, num_threads));
  try {
    for (int i = 0; i < num_threads; ++i) {
      engine->threads_.emplace_back([raw = engine.get()] { raw->work(); });
    }
  } catch (const std::system_error& error) {
    return make_error(ErrorCode::kResource, "no thread to read with: {}", error.what());
  }
  return engine;
}

PreadEngine::PreadEngine(std::span<const int> files, int num_threads)
    : files_(files.begin(), files.end()) {
  // A block of several stretches must fit even if there is one thread.
  const auto capacity = static_cast<std::size_t>(std::max(num_threads, 4));
  queue_.resize(capacity);
  batch_.reserve(capacity);
  completed_.reserve(capacity);
}

PreadEngine::~PreadEngine() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  work_.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

void PreadEngine::submit() {
  if (batch_.empty()) return;
  const std::size_t count = batch_.size();
  {
    const std::lock_guard lock(mutex_);
    CHECK(num_queued_ + count <= queue_.size(), "{} reads for {} places", num_queued_ + count,
          queue_.size());
    for (const ReadOp& op : batch_) {
      queue_[(queue_begin_ + num_queued_++) % queue_.size()] = op;
    }
  }
  batch_.clear();
  if (count == 1) {
    work_.notify_one();
  } else {
    work_.notify_all();
  }
}

void PreadEngine::work() {
  std::unique_lock lock(mutex_);
  while (true) {
    work_.wait(lock, [&] { return stop_ || num_queued_ > 0; });
    if (num_queued_ == 0) return;
    const ReadOp op = queue_[queue_begin_];
    queue_begin_ = (queue_begin_ + 1) % queue_.size();
    --num_queued_;
    lock.unlock();
    const ssize_t got =
        ::pread(files_[static_cast<std::size_t>(op.file)], op.dst.data(), op.dst.size(), op.offset);
    const auto result = static_cast<std::int32_t>(got < 0 ? -errno : got);
    lock.lock();
    completed_.push_back({op.user, result});
    if (completed_.size() == 1) done_.notify_one();
  }
}

std::size_t PreadEngine::reap(std::span<ReadOpDone> out, bool wait) {
  std::unique_lock lock(mutex_);
  if (wait) done_.wait(lock, [&] { return woken_ || !completed_.empty(); });
  woken_ = false;
  const std::size_t count = std::min(out.size(), completed_.size());
  const auto taken = completed_.begin() + static_cast<std::ptrdiff_t>(count);
  std::copy(completed_.begin(), taken, out.begin());
  completed_.erase(completed_.begin(), taken);
  return count;
}

void PreadEngine::wake() {
  {
    const std::lock_guard lock(mutex_);
    woken_ = true;
  }
  done_.notify_one();
}

}  // namespace stoker::storage
