#include "tests/support/replay_backend.h"

namespace stoker::test {

void ReplayBackend::check_closed(std::string_view what) const {
  CHECK(!open_, "{} within part {}", what, open_ ? open_->part : 0);
}

void ReplayBackend::call(Call&& made) {
  if (!open_) return made.run();
  calls_.push_back(std::move(made));
}

void ReplayBackend::begin_part(const StepView& step, int part) {
  check_closed("a part");
  CHECK(step.may_have_parts(), "a part of a step of {} rows", step.num_rows());
  open_ = Key{&step, step.num_rows(), part};
}

void ReplayBackend::end_part() {
  CHECK(open_.has_value(), "no part is open");
  const auto [kept, is_first] = kept_.try_emplace(*open_, calls_);
  if (!is_first) {
    CHECK(kept->second.size() == calls_.size(), "part {}: {} calls, then {}", open_->part,
          kept->second.size(), calls_.size());
    for (std::size_t i = 0; i < calls_.size(); ++i) {
      const Call& first = kept->second[i];
      const Call& again = calls_[i];
      CHECK(first.name == again.name && first.operands == again.operands,
            "part {}: call {} is another one", open_->part, i);
    }
    counts_.num_calls_replayed += static_cast<int>(calls_.size());
  }
  ++(is_first ? counts_.num_first : counts_.num_replayed);
  counts_.num_kept = static_cast<int>(kept_.size());
  calls_.clear();
  open_.reset();
  for (const Call& made : kept->second) made.run();
}

void ReplayBackend::forget_parts(const StepView& step) {
  std::erase_if(kept_, [&](const auto& part) { return part.first.step == &step; });
  counts_.num_kept = static_cast<int>(kept_.size());
}

Status ReplayBackend::begin_step(const StepView& step) {
  check_closed("a step");
  return ForwardingBackend::begin_step(step);
}
Event ReplayBackend::record() {
  if (open_) call({"record", {}, [] {}});
  return ForwardingBackend::record();
}
bool ReplayBackend::done(Event event) {
  check_closed("asking for an event");
  return ForwardingBackend::done(event);
}
void ReplayBackend::wait_for(Backend& other, Event event) {
  check_closed("waiting");
  ForwardingBackend::wait_for(other, event);
}
Status ReplayBackend::finish() {
  check_closed("waiting");
  return ForwardingBackend::finish();
}

void ReplayBackend::experts(const StepView& step, const ExpertParams& params) {
  check_closed("routed experts");
  ForwardingBackend::experts(step, params);
}
void ReplayBackend::combine(const StepView& step, const CombineParams& params) {
  check_closed("a sum of routed experts");
  ForwardingBackend::combine(step, params);
}

}  // namespace stoker::test
