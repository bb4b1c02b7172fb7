#include "tests/support/late_backend.h"

#include <algorithm>
#include <limits>
#include <thread>

namespace stoker::test {

void LateBackend::enqueue(std::function<void()> operation) {
  ++next_ticket_;
  queue_.push_back(std::move(operation));
}

void LateBackend::run_next() {
  const std::function<void()> operation = std::move(queue_.front());
  queue_.pop_front();
  ++num_run_;
  if (fail_in_ == 0) failed_ = Error(ErrorCode::kIo, "the device was lost");
  if (fail_in_ >= 0) --fail_in_;
  if (failed_.ok()) operation();
}

bool LateBackend::done(Event event) {
  ++num_polls_;
  for (int i = 0; i < per_poll_ && num_run_ < event.ticket; ++i) run_next();
  return num_run_ >= event.ticket;
}

Status LateBackend::begin_step(const StepView& step) {
  failed_ = {};
  const StepView* at = &step;
  enqueue([this, at] { failed_ = inner().begin_step(*at); });
  return {};
}

void LateBackend::wait_for(Backend& other, Event event) {
  if (&other == this) return;
  enqueue([&other, event] {
    while (!other.done(event)) std::this_thread::yield();
  });
}

Status LateBackend::status() { return failed_; }

Status LateBackend::finish() {
  while (!queue_.empty()) run_next();
  return failed_;
}

void LateBackend::route(const StepView& step, const RouteParams& params) {
  // Whoever reads the mailbox before the event meets values that no router gives.
  std::fill(params.mailbox.experts.begin(), params.mailbox.experts.end(), -1);
  std::fill(params.mailbox.weights.begin(), params.mailbox.weights.end(),
            std::numeric_limits<float>::quiet_NaN());
  ForwardingBackend::route(step, params);  // what is forced is read late
}

}  // namespace stoker::test
