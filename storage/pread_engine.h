// PreadEngine: reads by a small pool of threads, for kernels and containers without io_uring.
#pragma once

#include <condition_variable>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "storage/engine.h"

namespace stoker::storage {

class PreadEngine final : public Engine {
 public:
  // `files` stay open while the engine lives. kResource: the threads cannot be had.
  static Result<std::unique_ptr<PreadEngine>> open(std::span<const int> files, int num_threads);

  ~PreadEngine() override;

  std::string_view name() const override { return "pread"; }
  int capacity() const override { return static_cast<int>(queue_.size()); }
  void bind() override {}
  Status register_memory(std::span<std::byte> /*memory*/) override { return {}; }
  void collect(const ReadOp& op) override { batch_.push_back(op); }
  void submit() override;
  std::size_t reap(std::span<ReadOpDone> out, bool wait) override;
  void wake() override;

 private:
  PreadEngine(std::span<const int> files, int num_threads);
  void work();

  std::vector<int> files_;
  std::vector<ReadOp> batch_;

  std::mutex mutex_;  // guards what follows
  std::condition_variable work_;
  std::condition_variable done_;
  std::vector<ReadOp> queue_;  // a circle of capacity() places
  std::size_t queue_begin_ = 0, num_queued_ = 0;
  std::vector<ReadOpDone> completed_;
  bool woken_ = false;
  bool stop_ = false;

  std::vector<std::thread> threads_;
};

}  // namespace stoker::storage
