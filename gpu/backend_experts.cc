// Routed experts: parts become tasks of a grouped launch; parts in host memory are uploaded first.
#include <cuda_runtime_api.h>

#include <algorithm>

#include "gpu/backend.h"
#include "gpu/error.h"
#include "gpu/run-inl.h"
#include "quant/tile16.h"

namespace stoker::gpu {
namespace {

constexpr std::int64_t kUploadBytes = std::int64_t{64} << 20;
constexpr std::int64_t kUploadAlign = 256;

std::int64_t aligned(std::int64_t bytes) {
  return (bytes + kUploadAlign - 1) / kUploadAlign * kUploadAlign;
}

// Bytes of the upload buffer that a view takes.
std::int64_t upload_bytes(const QuantView& view) {
  const quant::Tile16 tile = quant::tile16_of(view);
  return aligned(tile.payload_bytes()) + aligned(tile.scale_bytes());
}

Status check_part(const QuantView& view) {
  if (view.layout == WeightLayout::kTile16) return {};
  return make_error(ErrorCode::kUnsupported,
                    "an expert in row-major form; the CUDA backend computes with tile16 blocks");
}

}  // namespace

void CudaBackend::experts(const StepView& step, const ExpertParams& params) {
  CHECK(params.x.rows == step.num_rows(), "{} rows in a step of {}", params.x.rows,
        step.num_rows());
  run([&] { return run_parts(params); });
}

// All gate/up parts, then all down parts: the order of the stream does the rest.
Status CudaBackend::run_parts(const ExpertParams& params) {
  tasks_.clear();  // of a call that failed half way
  upload_used_ = 0;
  for (const ExpertHalf half : {ExpertHalf::kGateUp, ExpertHalf::kDown}) {
    const bool gate_up = half == ExpertHalf::kGateUp;
    for (const ExpertPart& part : params.parts) {
      if (part.half != half || !part.passes_guard()) continue;
      const QuantView& first = gate_up ? part.gate : part.down;
      RETURN_IF_ERROR(check_part(first));
      if (gate_up) RETURN_IF_ERROR(check_part(part.up));
      // 1. The bytes, here.
      const bool away = first.device != device();
      const std::int64_t needed =
          away ? upload_bytes(first) + (gate_up ? upload_bytes(part.up) : 0) : 0;
      if (away && upload_used_ + needed > upload_.bytes()) {
        RETURN_IF_ERROR(flush_tasks(params, half));
        RETURN_IF_ERROR(upload_.grow(std::max(needed, kUploadBytes)), "uploaded experts");
      }
      ExpertTask task;
      ASSIGN_OR_RETURN(task.weight, resident(first));
      if (gate_up) {
        ASSIGN_OR_RETURN(task.up, resident(part.up));
      }
      // 2. A task for every few rows that chose the expert.
      task.row_begin = part.row_begin;
      const ExpertUse& use = params.uses[static_cast<std::size_t>(part.use)];
      const int num_rows = static_cast<int>(use.rows.size());
      for (int begin = 0; begin < num_rows; begin += kExpertTaskRows) {
        task.num_inputs = std::min(kExpertTaskRows, num_rows - begin);
        task.out_row = use.slot_begin + begin;
        for (int i = 0; i < task.num_inputs; ++i) {
          task.in_rows[i] =
              gate_up ? use.rows[static_cast<std::size_t>(begin + i)] : task.out_row + i;
        }
        tasks_.push_back(task);
      }
    }
    RETURN_IF_ERROR(flush_tasks(params, half));
  }
  return {};
}

Status CudaBackend::flush_tasks(const ExpertParams& params, ExpertHalf half) {
  Status launched;
  if (!tasks_.empty()) {
    launched = half == ExpertHalf::kGateUp
                   ? launch_expert_gate_up({tasks_, params.x, params.hidden}, stream_)
                   : launch_expert_down({tasks_, params.hidden, params.out}, stream_);
  }
  tasks_.clear();
  upload_used_ = 0;  // later uploads are ordered behind these kernels
  return launched;
}

// The view, on this device: copied behind the uploads before it if it lies elsewhere.
Result<QuantView> CudaBackend::resident(const QuantView& view) {
  if (view.device == device()) return view;
  const quant::Tile16 tile = quant::tile16_of(view);
  const auto handle = static_cast<cudaStream_t>(stream_.handle());
  QuantView copy = view;
  const auto upload = [&](const void* src, std::int64_t bytes) -> Result<std::byte*> {
    std::byte* dst = upload_.data() + upload_used_;
    upload_used_ += aligned(bytes);
    RETURN_IF_ERROR(cuda_status(
        cudaMemcpyAsync(dst, src, static_cast<std::size_t>(bytes), cudaMemcpyDefault, handle),
        "uploading an expert"));
    return dst;
  };
  ASSIGN_OR_RETURN(copy.payload, upload(view.payload, tile.payload_bytes()));
  if (view.spec.has_scales()) {
    ASSIGN_OR_RETURN(copy.scales, upload(view.scales, tile.scale_bytes()));
  }
  copy.device = device();
  return copy;
}

void CudaBackend::combine(const StepView& step, const CombineParams& params) {
  CHECK(params.out.rows == step.num_rows() && params.slots.size() == params.weights.size(),
        "{} rows, {} slots, {} weights", params.out.rows, params.slots.size(),
        params.weights.size());
  run([&]() -> Status {
    if (params.out.rows == 0) return {};
    const auto bytes = static_cast<std::int64_t>(params.slots.size() * 4);
    RETURN_IF_ERROR(combine_slots_.grow(2 * bytes), "slots");
    std::byte* weights = combine_slots_.data() + bytes;
    RETURN_IF_ERROR(staging_.copy(combine_slots_.data(), params.slots.data(), bytes, stream_));
    RETURN_IF_ERROR(staging_.copy(weights, params.weights.data(), bytes, stream_));
    const int top_k =
        static_cast<int>(static_cast<std::int64_t>(params.slots.size()) / params.out.rows);
    return launch_combine(
        {params.expert_out, reinterpret_cast<const std::int32_t*>(combine_slots_.data()),
         reinterpret_cast<const float*>(weights), top_k, params.shared, params.out},
        stream_);
  });
}

}  // namespace stoker::gpu
