// DriveThread: the I/O thread of one drive with the inbox that its wishes come through; Outbox:
// where the completions of all drives go.
#pragma once

#include <chrono>
#include <condition_variable>
#include <future>
#include <memory>
#include <mutex>
#include <span>
#include <thread>
#include <vector>

#include "storage/drive.h"

namespace stoker::storage {

// Thread-safe.
class Outbox {
 public:
  // Moves the content of `done` in.
  void post(std::vector<BlockDone>& done);
  std::size_t take(std::span<BlockDone> out);
  // Waits until there is something to take or `timeout` has passed.
  void wait(std::chrono::microseconds timeout);

 private:
  std::mutex mutex_;
  std::condition_variable filled_;
  std::vector<BlockDone> done_;
};

// One owner thread, except for register_memory() and load().
class DriveThread {
 public:
  DriveThread(const ExtentSource& source, std::unique_ptr<Engine> engine, DriveLimits limits,
              Outbox& outbox);
  // Cancels what is queued, waits for what is issued.
  ~DriveThread();

  // Wishes are staged and go to the I/O thread at the next flush().
  void stage(const QueuedRead& read);
  void stage_promote(std::uint32_t tag, ReadClass read_class, float priority);
  void stage_cancel(std::uint32_t tag);
  void flush();

  // Waits for the I/O thread to do it. From any thread.
  Status register_memory(std::span<std::byte> memory);

  const DriveLoad& load() const { return load_; }

 private:
  enum class Verb : std::uint8_t { kRead, kPromote, kCancel };
  struct Wish {
    Verb verb;
    QueuedRead read;  // kPromote, kCancel: its tag, class and priority
  };
  struct Registration {
    std::span<std::byte> memory;
    std::promise<Status> done;
  };

  void run();
  // Takes everything out of the inbox; false: the end has been asked for.
  bool take_wishes();
  void knock();  // wakes the I/O thread unless it has been; with the inbox locked

  DriveLoad load_;
  Drive drive_;
  Outbox& outbox_;
  std::vector<Wish> staged_;

  std::mutex mutex_;  // of the inbox:
  std::vector<Wish> wishes_;
  std::vector<Registration*> registrations_;
  bool knocked_ = false;
  bool stop_ = false;

  std::vector<Wish> taken_;  // by the I/O thread
  std::vector<Registration*> taken_registrations_;
  std::thread thread_;
};

}  // namespace stoker::storage
