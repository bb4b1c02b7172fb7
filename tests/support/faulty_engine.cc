#include "tests/support/faulty_engine.h"

#include <algorithm>
#include <thread>
#include <utility>

namespace stoker::test {

using storage::Engine;
using storage::ReadOp;
using storage::ReadOpDone;

class FaultyEngine final : public Engine {
 public:
  FaultyEngine(std::unique_ptr<Engine> inner, Faults& faults)
      : inner_(std::move(inner)), faults_(faults) {
    const std::lock_guard lock(faults_.mutex_);
    faults_.engines_.push_back(inner_.get());
  }
  ~FaultyEngine() override {
    const std::lock_guard lock(faults_.mutex_);
    std::erase(faults_.engines_, inner_.get());
  }

  std::string_view name() const override { return inner_->name(); }
  int capacity() const override { return inner_->capacity(); }
  void bind() override { inner_->bind(); }
  Status register_memory(std::span<std::byte> memory) override {
    return inner_->register_memory(memory);
  }
  void collect(const ReadOp& op) override {
    {
      const std::lock_guard lock(faults_.mutex_);
      under_way_[op.user] = {op, faults_.num_issued_++};
      faults_.under_way_ += std::ssize(op.dst);
      faults_.most_under_way_ = std::max(faults_.most_under_way_, faults_.under_way_);
    }
    inner_->collect(op);
  }
  void submit() override { inner_->submit(); }
  std::size_t reap(std::span<ReadOpDone> out, bool wait) override;
  void wake() override { inner_->wake(); }

 private:
  struct UnderWay {
    ReadOp op;
    int number = 0;
  };
  std::int32_t result_of(const UnderWay& read, std::int32_t result) const;

  std::unique_ptr<Engine> inner_;
  Faults& faults_;
  std::map<std::uint64_t, UnderWay> under_way_;             // by user
  std::map<int, std::pair<std::uint64_t, int>> completed_;  // number -> user, result
};

std::int32_t FaultyEngine::result_of(const UnderWay& read, std::int32_t result) const {
  const auto it = faults_.faults_.find(read.number);
  if (it == faults_.faults_.end()) return result;
  const Faults::Fault& fault = it->second;
  if (fault.code != 0) return -fault.code;
  if (fault.bit >= 0 && fault.bit / 8 < result) {
    read.op.dst[static_cast<std::size_t>(fault.bit / 8)] ^= std::byte{1} << (fault.bit % 8);
  }
  return fault.most < 0 ? result
                        : static_cast<std::int32_t>(std::min<std::int64_t>(result, fault.most));
}

std::size_t FaultyEngine::reap(std::span<ReadOpDone> out, bool wait) {
  const bool ready = [&] {
    const std::lock_guard lock(faults_.mutex_);
    return !completed_.empty() && (!faults_.holding_ || faults_.allowed_ > 0);
  }();
  const std::size_t count = inner_->reap(out, wait && !ready);
  const std::unique_lock lock(faults_.mutex_);
  if (count > 0 && faults_.delay_.count() > 0) std::this_thread::sleep_for(faults_.delay_);
  for (std::size_t i = 0; i < count; ++i) {
    completed_[under_way_.at(out[i].user).number] = {out[i].user, out[i].result};
  }
  std::size_t passed = 0;
  while (!completed_.empty() && passed < out.size() &&
         (!faults_.holding_ || faults_.allowed_ > 0)) {
    if (faults_.holding_) --faults_.allowed_;
    const auto [user, result] = completed_.begin()->second;
    completed_.erase(completed_.begin());
    const auto read = under_way_.extract(user);
    faults_.under_way_ -= std::ssize(read.mapped().op.dst);
    out[passed++] = {user, result_of(read.mapped(), result)};
  }
  return passed;
}

void Faults::fail(int nth, int code) {
  const std::lock_guard lock(mutex_);
  faults_[nth].code = code;
}
void Faults::shorten(int nth, std::int64_t bytes) {
  const std::lock_guard lock(mutex_);
  faults_[nth].most = bytes;
}
void Faults::flip(int nth, std::int64_t bit) {
  const std::lock_guard lock(mutex_);
  faults_[nth].bit = bit;
}
void Faults::slow_down(std::chrono::microseconds by) {
  const std::lock_guard lock(mutex_);
  delay_ = by;
}
void Faults::hold() {
  const std::lock_guard lock(mutex_);
  holding_ = true;
  allowed_ = 0;
}
void Faults::let_go(int count) {
  const std::lock_guard lock(mutex_);
  allowed_ += count;
  for (Engine* engine : engines_) engine->wake();
}
void Faults::let_all_go() {
  const std::lock_guard lock(mutex_);
  holding_ = false;
  for (Engine* engine : engines_) engine->wake();
}
int Faults::num_issued() const {
  const std::lock_guard lock(mutex_);
  return num_issued_;
}
std::int64_t Faults::most_bytes_under_way() const {
  const std::lock_guard lock(mutex_);
  return most_under_way_;
}

std::function<std::unique_ptr<Engine>(std::unique_ptr<Engine>)> Faults::wrapper() {
  return [this](std::unique_ptr<Engine> inner) {
    return std::make_unique<FaultyEngine>(std::move(inner), *this);
  };
}

}  // namespace stoker::test
