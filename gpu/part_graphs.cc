#include "gpu/part_graphs.h"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <bit>

#include "gpu/error.h"
#include "gpu/native.h"

namespace stoker::gpu {
namespace {

int most_visible(const StepView& step) {
  const auto most = std::max_element(step.positions.begin(), step.positions.end());
  return most == step.positions.end() ? 0 : *most + 1;
}

}  // namespace

VisibleRange visible_range(int most_visible, int boundary) {
  CHECK(most_visible > 0, "{} visible positions", most_visible);
  const auto above = static_cast<int>(std::bit_floor(static_cast<unsigned>(most_visible - 1) | 1u));
  const int step = std::max(above / 4, kPageTokens);
  const int last = (most_visible + step - 1) / step * step;
  VisibleRange range{last - step + 1, last};
  if (boundary > 0 && most_visible <= boundary) range.last = std::min(last, boundary);
  if (boundary > 0 && most_visible > boundary) range.first = std::max(range.first, boundary + 1);
  return range;
}

void GraphDeleter::operator()(void* graph) const {
  // One that still runs is freed when it is through.
  (void)cudaGraphExecDestroy(static_cast<cudaGraphExec_t>(graph));
}

PartGraphs::Entries::iterator PartGraphs::find(const Part& part, int most_visible) {
  const auto step = reinterpret_cast<std::uintptr_t>(part.step);
  const int num_rows = part.step->num_rows();
  const auto found = entries_.lower_bound({step, num_rows, part.number, most_visible});
  if (found == entries_.end() || found->first.step != step || found->first.num_rows != num_rows ||
      found->first.number != part.number || found->second.first_visible > most_visible) {
    return entries_.end();
  }
  if (found->second.tables == part.tables) return found;
  entries_.erase(found);
  return entries_.end();
}

void PartGraphs::begin(const Part& part, const Stream& stream) {
  CHECK(!open(), "part {} within part {}", part.number, part_.number);
  if (most_ == 0) return;
  if (part.scratch != scratch_) {
    clear();
    scratch_ = part.scratch;
  }
  part_ = part;
  range_ = {};
  num_calls_ = 0;
  current_ = find(part, most_visible(*part.step));
  if (current_ == entries_.end()) {
    mode_ = Mode::kRun;
    return;
  }
  current_->second.last_use = ++num_uses_;
  if (current_->second.graph != nullptr) {
    mode_ = Mode::kReplay;
    return;
  }
  // Other threads may go on calling the driver.
  const Status begun = cuda_status(
      cudaStreamBeginCapture(native(stream), cudaStreamCaptureModeThreadLocal), "capturing a part");
  mode_ = begun.ok() ? Mode::kCapture : Mode::kRun;
  if (!begun.ok()) most_ = 0;
}

Result<bool> PartGraphs::end(bool failed, const Stream& stream) {
  const Mode mode = std::exchange(mode_, Mode::kNone);
  if (mode == Mode::kCapture) {
    if (Status made = instantiate(stream, failed); !made.ok()) {
      most_ = 0;
      clear();
      return make_error(made.error().code(), "{}; parts run without graphs from now on",
                        made.error().message());
    }
  }
  if (failed || mode == Mode::kNone) return false;
  if (mode == Mode::kRun) {
    remember();
    return false;
  }
  CHECK(num_calls_ == current_->second.num_calls, "part {} had {} operations and now has {}",
        part_.number, current_->second.num_calls, num_calls_);
  return true;
}

Status PartGraphs::instantiate(const Stream& stream, bool failed) {
  cudaGraph_t captured = nullptr;
  RETURN_IF_ERROR(cuda_status(cudaStreamEndCapture(native(stream), &captured), "capturing a part"));
  if (failed) {
    (void)cudaGraphDestroy(captured);
    return {};
  }
  cudaGraphExec_t graph = nullptr;
  const cudaError_t made = cudaGraphInstantiate(&graph, captured, 0);
  (void)cudaGraphDestroy(captured);
  RETURN_IF_ERROR(cuda_status(made, "making a graph of a part"));
  current_->second.graph.reset(graph);
  return {};
}

Status PartGraphs::launch(const Stream& stream) {
  return cuda_status(
      cudaGraphLaunch(static_cast<cudaGraphExec_t>(current_->second.graph.get()), native(stream)),
      "launching a graph");
}

// The part has run once.
void PartGraphs::remember() {
  if (most_ == 0) return;
  if (static_cast<int>(entries_.size()) >= most_) {
    entries_.erase(std::ranges::min_element(
        entries_, {}, [](const auto& entry) { return entry.second.last_use; }));
  }
  Entry entry;
  entry.first_visible = range_.first;
  entry.tables = part_.tables;
  entry.num_calls = num_calls_;
  entry.last_use = ++num_uses_;
  entries_.insert_or_assign({reinterpret_cast<std::uintptr_t>(part_.step), part_.step->num_rows(),
                             part_.number, range_.last},
                            std::move(entry));
}

void PartGraphs::narrow(VisibleRange range) {
  range_.first = std::max(range_.first, range.first);
  range_.last = std::min(range_.last, range.last);
}

void PartGraphs::forget(const StepView& step) {
  const auto address = reinterpret_cast<std::uintptr_t>(&step);
  const auto begin = entries_.lower_bound({address, INT_MIN, INT_MIN, INT_MIN});
  entries_.erase(begin, entries_.upper_bound({address, INT_MAX, INT_MAX, INT_MAX}));
}

void PartGraphs::clear() { entries_.clear(); }

int PartGraphs::num_graphs() const {
  return static_cast<int>(std::ranges::count_if(
      entries_, [](const auto& entry) { return entry.second.graph != nullptr; }));
}

}  // namespace stoker::gpu
