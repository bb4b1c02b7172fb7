// A backend that takes parts at their word: what is called in a part is kept the first time and
// runs at its end, and from then on what was kept runs instead. What is called instead must be the
// same, or the test ends. Outside parts it is the inner backend, which computes at once.
#pragma once

#include <compare>
#include <map>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "tests/support/forwarding_backend.h"

namespace stoker::test {

struct PartCounts {
  int num_kept = 0;  // parts that are kept by now
  int num_first = 0, num_replayed = 0;
  int num_calls_replayed = 0;
};

class ReplayBackend final : public ForwardingBackend {
 public:
  // `counts` outlives it.
  ReplayBackend(std::unique_ptr<Backend> inner, PartCounts& counts)
      : ForwardingBackend(std::move(inner)), counts_(counts) {}

  std::string_view name() const override { return "replay"; }

  Status begin_step(const StepView& step) override;
  Event record() override;
  bool done(Event event) override;
  void wait_for(Backend& other, Event event) override;
  void begin_part(const StepView& step, int part) override;
  void end_part() override;
  void forget_parts(const StepView& step) override;
  Status finish() override;

  void experts(const StepView& step, const ExpertParams& params) override;
  void combine(const StepView& step, const CombineParams& params) override;

 private:
  struct Key {
    const StepView* step;
    int num_rows, part;
    auto operator<=>(const Key&) const = default;
  };

  void call(Call&& made) override;
  void check_closed(std::string_view what) const;

  PartCounts& counts_;
  std::optional<Key> open_;
  std::vector<Call> calls_;  // of the open part
  std::map<Key, std::vector<Call>> kept_;
};

}  // namespace stoker::test
