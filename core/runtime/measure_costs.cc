#include "core/runtime/measure_costs.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <numeric>
#include <thread>
#include <utility>
#include <vector>

#include "core/base/median.h"

namespace stoker {
namespace {

// Experts that are computed together: what a layer of one token asks for, and too much for caches.
constexpr int kMostExperts = 8;
// Rows of a use. The second tells what a row costs from what an expert costs.
constexpr std::array<int, 2> kNumRows = {1, 4};
constexpr int kLeastRounds = 3, kMostRounds = 30;
constexpr std::int64_t kRoundsUs = 40'000;  // after which no more than kLeastRounds are run

Status wait(Backend& backend) {
  const Event event = backend.record();
  while (!backend.done(event)) {
    RETURN_IF_ERROR(backend.status());
    std::this_thread::yield();
  }
  return backend.status();
}

// Median time of what `enqueue` gives `backend` to do.
template <typename Fn>
Result<double> time_of(Backend& backend, const Clock& clock, const Fn& enqueue) {
  enqueue();  // first uses allocate
  RETURN_IF_ERROR(wait(backend));
  std::vector<double> times;
  const std::int64_t start = clock.now_us();
  while (static_cast<int>(times.size()) < kLeastRounds ||
         (static_cast<int>(times.size()) < kMostRounds && clock.now_us() - start < kRoundsUs)) {
    const std::int64_t before = clock.now_us();
    enqueue();
    RETURN_IF_ERROR(wait(backend));
    times.push_back(static_cast<double>(clock.now_us() - before));
  }
  return median(std::move(times));
}

// Values between 1/2 and 1 of either sign, so that no product is of zeros.
std::vector<std::byte> some_inputs(std::int64_t count, DType dtype) {
  std::vector<std::byte> bytes(static_cast<std::size_t>(count) * dtype_bytes(dtype));
  std::uint32_t state = 1;
  for (std::int64_t i = 0; i < count; ++i) {
    state = state * 1664525U + 1013904223U;  // Numerical Recipes, 7.1
    const std::uint32_t bits = 0x3F000000U | (state & 0x80000000U) | (state >> 9 & 0x007FFFFFU);
    const std::size_t at = static_cast<std::size_t>(i) * dtype_bytes(dtype);
    if (dtype == DType::kBf16) {
      const auto high = static_cast<std::uint16_t>(bits >> 16);
      std::memcpy(&bytes[at], &high, sizeof high);
    } else {
      std::memcpy(&bytes[at], &bits, sizeof bits);
    }
  }
  return bytes;
}

class CostProbe {
 public:
  CostProbe(const ModelConfig& config, const ExpertSource& source, const Clock& clock)
      : config_(config), source_(source), clock_(clock) {
    for (const LayerSpec& spec : config.layers()) {
      if (spec.role != LayerRole::kMain || spec.ffn != FfnKind::kMoe || spec_ != nullptr) continue;
      spec_ = &spec;
    }
    CHECK(spec_ != nullptr, "a model without routed experts");
    num_experts_ = std::min(kMostExperts, spec_->router.num_experts);
    expert_bytes_ = source.expert_bytes(spec_->index);
  }

  // Reads the experts into memory of the host that `pins` may pin.
  Status read(Backend& pins) {
    ASSIGN_OR_RETURN(host_memory_, pins.allocate_host(DType::kU8, num_experts_, expert_bytes_));
    for (int expert = 0; expert < num_experts_; ++expert) {
      RETURN_IF_ERROR(
          source_.read({spec_->index, expert}, host_memory_.view().row<std::byte>(expert)));
    }
    return {};
  }

  Result<ComputeCost> compute(Backend& backend, const TensorView& experts);
  Result<DeviceCosts> device(Backend& backend, std::int64_t most_bytes);
  const TensorView& host_experts() const { return host_memory_.view(); }

 private:
  const ModelConfig& config_;
  const ExpertSource& source_;
  const Clock& clock_;
  const LayerSpec* spec_ = nullptr;
  int num_experts_ = 0;
  std::int64_t expert_bytes_ = 0;
  Tensor host_memory_;  // [num_experts_, expert_bytes_]
};

// Experts in memory of the backend, or of the host: one row of `experts` each.
Result<ComputeCost> CostProbe::compute(Backend& backend, const TensorView& experts) {
  const int num_experts = static_cast<int>(experts.rows);
  const DType act = backend.activation_dtype();
  std::array<double, kNumRows.size()> expert_us{};
  for (std::size_t shape = 0; shape < kNumRows.size(); ++shape) {
    // 1. A step in which every expert is chosen by every row.
    const int num_rows = kNumRows[shape];
    const std::int64_t num_slots = std::int64_t{num_experts} * num_rows;
    std::vector<std::int32_t> rows(static_cast<std::size_t>(num_rows));
    std::iota(rows.begin(), rows.end(), 0);
    const std::vector<TokenId> tokens(rows.size());
    const std::vector<float> weights(rows.size(), 0.5F);
    const RowRange range{0, num_rows, 0, Purpose::kDecode};
    StepView step;
    step.tokens = tokens;
    step.positions = rows;
    step.ranges = {&range, 1};
    std::vector<ExpertUse> uses;
    std::vector<ExpertPart> parts;
    for (int expert = 0; expert < num_experts; ++expert) {
      uses.push_back({expert, rows, weights, num_rows, expert * num_rows});
      for (int block = 0; block < source_.num_blocks(spec_->index); ++block) {
        ExpertPart& part = parts.emplace_back(
            source_.part(spec_->index, block,
                         experts.row<std::byte>(expert) + source_.block_offset(spec_->index, block),
                         experts.device));
        part.use = expert;
        part.block = block;
        part.site = backend.device();
      }
    }
    if (experts.device != kHost) parts = in_runs(parts);
    // 2. Its buffers.
    const std::int64_t hidden_size = config_.hidden_size;
    ASSIGN_OR_RETURN(const Tensor x, backend.allocate(act, num_rows, hidden_size));
    ASSIGN_OR_RETURN(const Tensor hidden, backend.allocate(act, num_slots, spec_->ffn_width));
    ASSIGN_OR_RETURN(const Tensor out, backend.allocate(act, num_slots, hidden_size));
    const std::vector<std::byte> inputs = some_inputs(num_rows * hidden_size, act);
    RETURN_IF_ERROR(backend.begin_step(step));
    backend.copy_in(x.view(), inputs.data());
    // 3. And how long it takes.
    ASSIGN_OR_RETURN(const double us, time_of(backend, clock_, [&] {
                       backend.experts(step, {x.view(), hidden.view(), out.view(), uses, parts});
                     }));
    expert_us[shape] = us / num_experts;
  }
  ComputeCost cost;
  cost.row_us = std::max(0.0, (expert_us[1] - expert_us[0]) / (kNumRows[1] - kNumRows[0]));
  cost.expert_us = std::max(expert_us[0] - cost.row_us * kNumRows[0], 0.1 * expert_us[0]);
  return cost;
}

Result<DeviceCosts> CostProbe::device(Backend& backend, std::int64_t most_bytes) {
  std::int64_t num_experts = num_experts_;
  if (most_bytes > 0) {
    num_experts = std::clamp<std::int64_t>(most_bytes / expert_bytes_, 1, num_experts);
  }
  const TensorView src = host_memory_.view().row_slice(0, num_experts);
  ASSIGN_OR_RETURN(const Tensor memory, backend.allocate(DType::kU8, num_experts, expert_bytes_));
  DeviceCosts costs;
  ASSIGN_OR_RETURN(const double us,
                   time_of(backend, clock_, [&] { backend.copy_in(memory.view(), src.data); }));
  costs.upload_us_per_byte = us / static_cast<double>(src.bytes());
  ASSIGN_OR_RETURN(costs.compute, compute(backend, memory.view()));
  return costs;
}

}  // namespace

Result<ExpertCosts> measure_costs(const ModelConfig& config, const ExpertSource& source,
                                  const CostSubjects& subjects, const Clock& clock) {
  CHECK(subjects.host != nullptr || !subjects.devices.empty(), "nobody to measure");
  CostProbe probe(config, source, clock);
  Backend& pins = subjects.devices.empty() ? *subjects.host : *subjects.devices.front().backend;
  RETURN_IF_ERROR(probe.read(pins), "experts to measure with");
  ComputeCost host;
  if (subjects.host != nullptr) {
    ASSIGN_OR_RETURN(host, probe.compute(*subjects.host, probe.host_experts()),
                     "measuring experts on the host");
  }
  std::vector<DeviceCosts> devices;
  for (const CostSubjects::Device& device : subjects.devices) {
    ASSIGN_OR_RETURN(devices.emplace_back(), probe.device(*device.backend, device.most_bytes),
                     "measuring experts on device {}", device.backend->device().index);
  }
  return ExpertCosts(host, devices);
}

}  // namespace stoker
