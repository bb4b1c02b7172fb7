// A backend whose work happens late: operations are queued and run only while somebody polls an
// event, a few at a time. What core reads before the event is done is poisoned. Its results are the
// inner backend's.
#pragma once

#include <deque>
#include <functional>
#include <memory>
#include <utility>

#include "tests/support/forwarding_backend.h"

namespace stoker::test {

class LateBackend final : public ForwardingBackend {
 public:
  // Runs at most `per_poll` queued operations per done().
  LateBackend(std::unique_ptr<Backend> inner, int per_poll)
      : ForwardingBackend(std::move(inner)), per_poll_(per_poll) {}

  // Makes the operation numbered `index` (counted from now) fail.
  void fail_at(int index) { fail_in_ = index; }
  int num_polls() const { return num_polls_; }

  std::string_view name() const override { return "late"; }

  Status begin_step(const StepView& step) override;
  Event record() override { return {next_ticket_}; }
  bool done(Event event) override;
  void wait_for(Backend& other, Event event) override;
  Status status() override;
  Status finish() override;

  void route(const StepView& step, const RouteParams& params) override;

 private:
  void call(Call&& made) override { enqueue(std::move(made.run)); }
  void enqueue(std::function<void()> operation);
  void run_next();

  int per_poll_;
  int fail_in_ = -1;
  int num_polls_ = 0;
  std::deque<std::function<void()>> queue_;
  std::uint64_t next_ticket_ = 0;  // operations enqueued so far
  std::uint64_t num_run_ = 0;
  Status failed_;
};

}  // namespace stoker::test
