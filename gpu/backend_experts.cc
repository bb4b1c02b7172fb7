// Routed experts: parts become tasks of grouped launches; parts that lie elsewhere are brought
// here.
#include <algorithm>
#include <type_traits>

#include "gpu/backend.h"
#include "gpu/run-inl.h"

namespace stoker::gpu {
namespace {

constexpr std::int64_t kAreaBytes = std::int64_t{16} << 20;  // where none were reserved

Status check_part(const QuantView& view) {
  if (view.layout == WeightLayout::kTile16) return {};
  return make_error(ErrorCode::kUnsupported,
                    "an expert in row-major form; the CUDA backend computes with tile16 blocks");
}

// A task for every few of rows [begin, end) of the use; `task` says the weights.
template <typename Task>
void add_tasks(Task task, const ExpertUse& use, bool gate_up, int begin, int end,
               std::vector<Task>& tasks) {
  constexpr int kMost = static_cast<int>(std::extent_v<decltype(task.in_rows)>);
  for (; begin < end; begin += kMost) {
    task.num_inputs = std::min(kMost, end - begin);
    task.out_row = use.slot_begin + begin;
    for (int i = 0; i < task.num_inputs; ++i) {
      task.in_rows[i] = gate_up ? use.rows[static_cast<std::size_t>(begin + i)] : task.out_row + i;
    }
    tasks.push_back(task);
  }
}

}  // namespace

void CudaBackend::experts(const StepView& step, const ExpertParams& params) {
  CHECK(params.x.rows == step.num_rows(), "{} rows in a step of {}", params.x.rows,
        step.num_rows());
  CHECK(!graphs_.open(), "experts within a part");
  run([&] { return run_parts(params); });
}

// All gate/up parts, then all down parts: the order of the stream does the rest. Of each, those
// that are here come first, so that they are computed while others are on their way.
Status CudaBackend::run_parts(const ExpertParams& params) {
  // What a call that failed half way left behind.
  clear_tasks();
  RETURN_IF_ERROR(uploads_.next_area(stream_));
  RETURN_IF_ERROR(begin_timing(params));
  for (const ExpertHalf half : {ExpertHalf::kGateUp, ExpertHalf::kDown}) {
    for (const bool away : {false, true}) {
      for (const ExpertPart& part : params.parts) {
        const bool is_away = part.device() != device();
        if (part.half != half || is_away != away || !part.passes_guard()) continue;
        RETURN_IF_ERROR(add_part(params, part));
      }
      RETURN_IF_ERROR(flush_tasks(params, half));
    }
  }
  return expert_timer_.end(stream_);
}

// What can be compared: whole experts that are here, with rows of decode.
Status CudaBackend::begin_timing(const ExpertParams& params) {
  expert_timer_.drop();  // that of a call that failed
  if (!expert_timer_.is_due()) {
    expert_timer_.pass();
    return {};
  }
  ExpertTiming counted;
  std::int64_t hidden_cols = 0, out_cols = 0;
  int last_use = -1;
  for (const ExpertPart& part : params.parts) {
    const ExpertUse& use = params.uses[static_cast<std::size_t>(part.use)];
    const int num_rows = static_cast<int>(use.rows.size());
    if (part.device() != device() || use.num_decode_rows < num_rows) return {};
    if (part.half == ExpertHalf::kDown) {
      out_cols += part.down.rows * part.num_blocks;
      continue;
    }
    hidden_cols += part.gate.rows * part.num_blocks;
    if (part.use == last_use) continue;
    last_use = part.use;
    ++counted.num_experts;
    counted.num_rows += num_rows;
  }
  if (counted.num_experts == 0 || hidden_cols != counted.num_experts * params.hidden.cols ||
      out_cols != counted.num_experts * params.out.cols) {
    return {};
  }
  RETURN_IF_ERROR(expert_timer_.begin(stream_));
  if (expert_timer_.timing()) timed_experts_ = counted;
  return {};
}

std::optional<ExpertTiming> CudaBackend::take_expert_timing() {
  if (!status_.ok()) return std::nullopt;
  const auto take = [&]() -> Result<ExpertTiming> {
    ExpertTiming timing;
    RETURN_IF_ERROR(use_device(options_.device));
    ASSIGN_OR_RETURN(const std::optional<double> compute_us, expert_timer_.take_us());
    if (compute_us) {
      timing = timed_experts_;
      timing.compute_us = *compute_us;
    }
    ASSIGN_OR_RETURN(const std::optional<TimedUpload> upload, uploads_.take_timing());
    if (upload) {
      timing.upload_bytes = upload->bytes;
      timing.upload_us = upload->us;
    }
    return timing;
  };
  Result<ExpertTiming> timing = take();
  if (!timing.ok()) status_ = timing.error();
  if (!timing.ok() || (timing->compute_us == 0.0 && timing->upload_us == 0.0)) return std::nullopt;
  return *timing;
}

Status CudaBackend::add_part(const ExpertParams& params, const ExpertPart& part) {
  const ExpertUse& use = params.uses[static_cast<std::size_t>(part.use)];
  if (use.rows.empty()) return {};
  const bool for_prompts = use.num_decode_rows < static_cast<int>(use.rows.size());
  if (part.num_blocks > 1 && (for_prompts || part.device() != device())) {
    for (int i = 0; i < part.num_blocks; ++i) {
      RETURN_IF_ERROR(add_part(params, part.block_at(i)));
    }
    return {};
  }
  const bool gate_up = part.half == ExpertHalf::kGateUp;
  ExpertTask task;
  task.weight = gate_up ? part.gate : part.down;
  if (gate_up) task.up = part.up;
  QuantView* const matrices[] = {&task.weight, &task.up};
  const std::span<QuantView* const> used(matrices, gate_up ? 2 : 1);
  for (const QuantView* matrix : used) {
    RETURN_IF_ERROR(check_part(*matrix));
    CHECK(matrix->device == part.device(), "gate on device {}, up on {}", part.device().index,
          matrix->device.index);
  }
  // 1. The bytes, here.
  if (part.device() != device()) {
    std::int64_t needed = 0;
    for (const QuantView* matrix : used) needed += ExpertUploads::bytes_needed(*matrix);
    if (!uploads_.has_room(needed)) {
      RETURN_IF_ERROR(flush_tasks(params, part.half));
      if (!uploads_.has_room(needed)) {
        RETURN_IF_ERROR(uploads_.reserve(std::max(needed, kAreaBytes), stream_));
      }
    }
    RETURN_IF_ERROR(uploads_.upload(used, device()));
  }
  // 2. Rows of decode and verify in the defined arithmetic, unless the option says otherwise; rows
  // of prefill on tensor cores, where they can. Both halves of an expert go the same way.
  const bool tensor_cores = suits_expert_mma(task.weight.spec, params.x) &&
                            suits_expert_mma(task.weight.spec, params.hidden);
  const int num_rows = static_cast<int>(use.rows.size());
  const int num_decode = std::min(use.num_decode_rows, num_rows);
  const int defined_begin = tensor_cores && options_.fast_experts ? num_decode : 0;
  const int defined_end = tensor_cores ? num_decode : num_rows;
  add_tasks(ExpertFewTask{task.weight, task.up, part.row_begin, part.num_blocks, part.stride}, use,
            gate_up, 0, defined_begin, few_tasks_);
  add_tasks(ExpertTask{task.weight, task.up, part.row_begin, part.num_blocks, part.stride}, use,
            gate_up, defined_begin, defined_end, tasks_);
  if (defined_end < num_rows) prefill_experts_.add(task.weight, task.up, part.row_begin, use);
  return {};
}

Status CudaBackend::flush_tasks(const ExpertParams& params, ExpertHalf half) {
  if (tasks_.empty() && few_tasks_.empty() && prefill_experts_.empty()) return {};
  const bool gate_up = half == ExpertHalf::kGateUp;
  const TensorView& x = gate_up ? params.x : params.hidden;
  const TensorView& out = gate_up ? params.hidden : params.out;
  const bool brought = !uploads_.empty();
  RETURN_IF_ERROR(uploads_.hand_over(stream_));
  if (!tasks_.empty()) {
    RETURN_IF_ERROR(gate_up ? launch_expert_gate_up({tasks_, x, out, brought}, stream_)
                            : launch_expert_down({tasks_, x, out, brought}, stream_));
  }
  if (!few_tasks_.empty()) {
    RETURN_IF_ERROR(gate_up ? launch_expert_gate_up_few({few_tasks_, x, out, brought}, stream_)
                            : launch_expert_down_few({few_tasks_, x, out, brought}, stream_));
  }
  if (!prefill_experts_.empty()) {
    RETURN_IF_ERROR(prefill_experts_.launch(half, x, out, params.uses, staging_, stream_));
  }
  clear_tasks();
  return uploads_.next_area(stream_);
}

void CudaBackend::clear_tasks() {
  tasks_.clear();
  few_tasks_.clear();
  prefill_experts_.clear();
}

void CudaBackend::combine(const StepView& step, const CombineParams& params) {
  CHECK(params.out.rows == step.num_rows() && params.slots.size() == params.weights.size(),
        "{} rows, {} slots, {} weights", params.out.rows, params.slots.size(),
        params.weights.size());
  CHECK(!graphs_.open(), "slots and weights of another step within a part");
  run([&]() -> Status {
    if (params.out.rows == 0) return {};
    const auto num_choices = static_cast<std::int64_t>(params.slots.size());
    CombineRowsParams rows{.expert_out = params.expert_out,
                           .slots = nullptr,
                           .weights = nullptr,
                           .few = {},
                           .top_k = static_cast<int>(num_choices / params.out.rows),
                           .shared = params.shared,
                           .out = params.out};
    if (num_choices <= kFewChoices) {
      std::ranges::copy(params.slots, rows.few.slots);
      std::ranges::copy(params.weights, rows.few.weights);
    } else {
      DeviceBuffer& slots = scratch_.combine_slots;
      RETURN_IF_ERROR(slots.grow(combine_bytes(num_choices)), "slots");
      std::byte* const weights = slots.data() + num_choices * 4;
      RETURN_IF_ERROR(staging_.copy(slots.data(), params.slots.data(), num_choices * 4, stream_));
      RETURN_IF_ERROR(staging_.copy(weights, params.weights.data(), num_choices * 4, stream_));
      rows.slots = reinterpret_cast<const std::int32_t*>(slots.data());
      rows.weights = reinterpret_cast<const float*>(weights);
    }
    return launch_combine(rows, stream_);
  });
}

}  // namespace stoker::gpu
