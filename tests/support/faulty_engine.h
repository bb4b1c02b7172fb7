// FaultyEngine: stands between a reader and its engine and does to reads what drives do: errors,
// short reads, flipped bits, slowness, reads that do not end.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <vector>

#include "storage/engine.h"

namespace stoker::test {

// What happens to which read of an engine, counted from 0 in the order they are handed over,
// continued reads included. Thread-safe; outlives the engines that it is given to.
class Faults {
 public:
  void fail(int nth, int code);                  // it ends with -code
  void shorten(int nth, std::int64_t bytes);     // it brings at most that much
  void flip(int nth, std::int64_t bit);          // of what it brings
  void slow_down(std::chrono::microseconds by);  // every read
  // Completions are kept back until they are let go: `count` of them, in the order in which they
  // were issued.
  void hold();
  void let_go(int count);
  void let_all_go();  // and hold no more

  int num_issued() const;
  std::int64_t most_bytes_under_way() const;

  // For ReaderOptions::wrap_engine.
  std::function<std::unique_ptr<storage::Engine>(std::unique_ptr<storage::Engine>)> wrapper();

 private:
  friend class FaultyEngine;
  struct Fault {
    int code = 0;
    std::int64_t most = -1;
    std::int64_t bit = -1;
  };

  mutable std::mutex mutex_;
  std::map<int, Fault> faults_;
  std::chrono::microseconds delay_{0};
  bool holding_ = false;
  int allowed_ = 0;  // completions that may pass while holding
  int num_issued_ = 0;
  std::int64_t under_way_ = 0, most_under_way_ = 0;
  std::vector<storage::Engine*> engines_;
};

}  // namespace stoker::test
