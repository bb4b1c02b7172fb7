#include "prefetch/demand_progress.h"

#include <algorithm>

namespace stoker {

DemandProgress::DemandProgress(int max_uses, int max_blocks)
    : max_uses_(max_uses),
      max_blocks_(max_blocks),
      states_(static_cast<std::size_t>(max_uses) * static_cast<std::size_t>(max_blocks)),
      ready_{Fifo(states_.size()), Fifo(states_.size()), Fifo(states_.size()),
             Fifo(states_.size())} {
  uses_.reserve(static_cast<std::size_t>(max_uses));
}

void DemandProgress::open(int num_uses, const ExpertShapes::Layer& shape) {
  CHECK(num_uses <= max_uses_ && shape.num_blocks() <= max_blocks_,
        "{} uses of {} blocks, room for {} of {}", num_uses, shape.num_blocks(), max_uses_,
        max_blocks_);
  shape_ = &shape;
  uses_.assign(static_cast<std::size_t>(num_uses), {shape.num_blocks(), shape.num_gate_up, false});
  std::fill(states_.begin(), states_.end(), State::kAway);
  for (Fifo& fifo : ready_) fifo.clear();
  num_untaken_ = num_uses * shape.num_blocks();
  num_undone_ = num_uses;
}

void DemandProgress::skip(int use) {
  CHECK(uses_[use].num_unpassed == shape_->num_blocks(), "use {} is skipped half way", use);
  for (int block = 0; block < shape_->num_blocks(); ++block) state(use, block) = State::kPassed;
  uses_[use].num_unpassed = uses_[use].num_gate_up_unpassed = 0;
  num_untaken_ -= shape_->num_blocks();
  --num_undone_;
}

void DemandProgress::make_ready(int use, int block) {
  state(use, block) = State::kReady;
  const std::size_t lane = uses_[use].urgent ? 0 : 2;
  ready_[lane + (is_gate_up(block) ? 0 : 1)].push({use, block});
}

void DemandProgress::landed(int use, int block) {
  CHECK(state(use, block) == State::kAway, "block {} of use {} lands twice", block, use);
  state(use, block) = State::kLanded;
  if (is_gate_up(block) || uses_[use].num_gate_up_unpassed == 0) make_ready(use, block);
}

std::optional<DemandProgress::Place> DemandProgress::take() {
  const auto fifo =
      std::find_if(ready_.begin(), ready_.end(), [](const Fifo& f) { return !f.empty(); });
  if (fifo == ready_.end()) return std::nullopt;
  const Place place = fifo->pop();
  state(place.use, place.block) = State::kTaken;
  --num_untaken_;
  return place;
}

void DemandProgress::passed(int use, int block) {
  CHECK(state(use, block) == State::kTaken, "block {} of use {} passes untaken", block, use);
  state(use, block) = State::kPassed;
  Use& u = uses_[use];
  if (--u.num_unpassed == 0) --num_undone_;
  if (!is_gate_up(block) || --u.num_gate_up_unpassed > 0) return;
  for (int down = shape_->num_gate_up; down < shape_->num_blocks(); ++down) {
    if (state(use, down) == State::kLanded) make_ready(use, down);
  }
}

void DemandProgress::failed(int use, int block) {
  CHECK(state(use, block) == State::kTaken, "block {} of use {} fails untaken", block, use);
  state(use, block) = State::kAway;
  ++num_untaken_;
}

void DemandProgress::Fifo::push(Place place) {
  CHECK(size_ < ring_.size(), "a queue of {} places is full", ring_.size());
  ring_[(first_ + size_++) % ring_.size()] = place;
}

DemandProgress::Place DemandProgress::Fifo::pop() {
  const Place place = ring_[first_];
  first_ = (first_ + 1) % ring_.size();
  --size_;
  return place;
}

}  // namespace stoker
