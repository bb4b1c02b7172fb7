// Memory, order and copies. Operations: backend_ops.cc, backend_experts.cc.
#include "gpu/backend.h"

#include <cuda_runtime_api.h>

#include <thread>

#include "gpu/error.h"
#include "gpu/gpu_info.h"
#include "gpu/native.h"
#include "gpu/run-inl.h"
#include "gpu/weights.h"

namespace stoker::gpu {
namespace {

constexpr std::size_t kTasksReserved = 1024;  // those of a decode step; more are seldom

void free_device(void* data) { DeviceMemoryDeleter{}(data); }
void free_pinned(void* data) { PinnedMemoryDeleter{}(data); }

Status check_options(const CudaBackendOptions& options) {
  if (options.activations != DType::kF32 && options.activations != DType::kBf16) {
    return make_error(ErrorCode::kUnsupported, "activations in {}; CUDA has BF16 and F32",
                      dtype_name(options.activations));
  }
  CHECK(options.logical >= 0 && options.staging_bytes > 0 && options.most_graphs >= 0,
        "device {} of the program, {} bytes for tables, {} graphs", options.logical,
        options.staging_bytes, options.most_graphs);
  return {};
}

// Copies rows of any place; strides in elements.
Status copy_rows(void* dst, std::int64_t dst_stride, const void* src, std::int64_t src_stride,
                 const TensorView& shape, const Stream& stream) {
  const auto element = static_cast<std::size_t>(dtype_bytes(shape.dtype));
  const auto width = static_cast<std::size_t>(shape.cols) * element;
  if (width == 0 || shape.rows == 0) return {};
  const bool without_gaps = dst_stride == shape.cols && src_stride == shape.cols;
  if (shape.rows == 1 || without_gaps) {
    const std::size_t bytes = width * static_cast<std::size_t>(shape.rows);
    return cuda_status(cudaMemcpyAsync(dst, src, bytes, cudaMemcpyDefault, native(stream)),
                       "copying");
  }
  return cuda_status(
      cudaMemcpy2DAsync(dst, static_cast<std::size_t>(dst_stride) * element, src,
                        static_cast<std::size_t>(src_stride) * element, width,
                        static_cast<std::size_t>(shape.rows), cudaMemcpyDefault, native(stream)),
      "copying");
}

}  // namespace

CudaBackend::CudaBackend(const CudaBackendOptions& options, Stream stream, StagingRing staging,
                         TicketCounter tickets, ExpertUploads uploads, SampleTimer expert_timer,
                         std::unique_ptr<CublasLt> cublaslt)
    : options_(options),
      stream_(std::move(stream)),
      staging_(std::move(staging)),
      tickets_(std::move(tickets)),
      uploads_(std::move(uploads)),
      expert_timer_(std::move(expert_timer)),
      cublaslt_(std::move(cublaslt)),
      graphs_(options.most_graphs) {
  tasks_.reserve(kTasksReserved);
}

CudaBackend::~CudaBackend() {
  (void)uploads_.synchronize();
  (void)stream_.synchronize();
}

Result<std::unique_ptr<Backend>> CudaBackend::create(const CudaBackendOptions& options) {
  RETURN_IF_ERROR(check_options(options));
  RETURN_IF_ERROR(use_device(options.device));
  RETURN_IF_ERROR(check_usable(options.device));
  ASSIGN_OR_RETURN(Stream stream,
                   Stream::create(options.overlap_launches && kernels_may_overlap()));
  ASSIGN_OR_RETURN(StagingRing staging, StagingRing::create(options.staging_bytes));
  ASSIGN_OR_RETURN(TicketCounter tickets, TicketCounter::create());
  ASSIGN_OR_RETURN(ExpertUploads uploads, ExpertUploads::create());
  ASSIGN_OR_RETURN(SampleTimer expert_timer, SampleTimer::create());
  std::unique_ptr<CublasLt> cublaslt;
  if (options.activations == DType::kBf16) cublaslt = CublasLt::open();
  std::unique_ptr<CudaBackend> backend(
      new CudaBackend(options, std::move(stream), std::move(staging), std::move(tickets),
                      std::move(uploads), std::move(expert_timer), std::move(cublaslt)));
  if (options.measure_busy) {
    ASSIGN_OR_RETURN(backend->meter_, BusyMeter::create());
  }
  RETURN_IF_ERROR(backend->reserve(options.scratch), "reserving scratch");
  return std::unique_ptr<Backend>(std::move(backend));
}

Status CudaBackend::reserve(const CudaScratch& scratch) {
  RETURN_IF_ERROR(scratch_.reserve(scratch));
  RETURN_IF_ERROR(uploads_.reserve(scratch.expert_uploads / ExpertUploads::kNumAreas, stream_));
  RETURN_IF_ERROR(prefill_experts_.reserve(scratch.expert_tables));
  if (scratch.step_tables > 0) RETURN_IF_ERROR(steps_.reserve(scratch.step_tables));
  return {};
}

CudaScratch CudaBackend::scratch_held() const {
  CudaScratch held = scratch_.held();
  held.expert_uploads = uploads_.bytes();
  held.expert_tables = prefill_experts_.bytes();
  held.step_tables = steps_.bytes();
  return held;
}

// ---- Memory ----

Result<Tensor> CudaBackend::allocate(DType dtype, std::int64_t rows, std::int64_t cols) {
  RETURN_IF_ERROR(use_device(options_.device));
  TensorView view = make_view(nullptr, dtype, rows, cols, device());
  ASSIGN_OR_RETURN(DeviceBuffer buffer,
                   DeviceBuffer::create(static_cast<std::int64_t>(view.bytes())));
  view.data = buffer.release();
  return Tensor(view, free_device);
}

Result<Tensor> CudaBackend::allocate_host(DType dtype, std::int64_t rows, std::int64_t cols) {
  RETURN_IF_ERROR(use_device(options_.device));
  TensorView view = make_view(nullptr, dtype, rows, cols);
  ASSIGN_OR_RETURN(PinnedBuffer buffer,
                   PinnedBuffer::create(static_cast<std::int64_t>(view.bytes())));
  view.data = buffer.release();
  return Tensor(view, free_pinned);
}

Result<WeightPtr> CudaBackend::adopt(const QuantView& host) {
  RETURN_IF_ERROR(use_device(options_.device));
  ASSIGN_OR_RETURN(std::unique_ptr<CudaWeight> weight, CudaWeight::tiled(host, device()));
  return WeightPtr(std::move(weight));
}

Result<WeightPtr> CudaBackend::adopt_embedding(const QuantView& host) {
  RETURN_IF_ERROR(use_device(options_.device));
  ASSIGN_OR_RETURN(std::unique_ptr<CudaWeight> weight, CudaWeight::on_host(host));
  return WeightPtr(std::move(weight));
}

Result<WeightPtr> CudaBackend::adopt_kv_b(const QuantView& host, const AttentionDims& dims) {
  CHECK(host.rows == std::int64_t{dims.num_heads} * (dims.nope_dim + dims.value_dim) &&
            host.cols == dims.latent_dim,
        "kv_b [{}, {}]", host.rows, host.cols);
  RETURN_IF_ERROR(use_device(options_.device));
  ASSIGN_OR_RETURN(std::unique_ptr<CudaWeight> weight, CudaWeight::row_major(host, device()));
  return WeightPtr(std::move(weight));
}

Result<Tensor> CudaBackend::adopt_vector(const TensorView& host) {
  CHECK(host.device == kHost && host.rows == 1, "[{}, {}]", host.rows, host.cols);
  std::vector<float> values(static_cast<std::size_t>(host.cols));
  for (std::size_t i = 0; i < values.size(); ++i) {
    if (host.dtype == DType::kF32) {
      values[i] = static_cast<const float*>(host.data)[i];
    } else if (host.dtype == DType::kBf16) {
      values[i] = to_f32(static_cast<const bf16*>(host.data)[i]);
    } else if (host.dtype == DType::kF16) {
      values[i] = to_f32(static_cast<const f16*>(host.data)[i]);
    } else {
      return make_error(ErrorCode::kUnsupported, "a vector of {}; F32, BF16 and F16 can be used",
                        dtype_name(host.dtype));
    }
  }
  RETURN_IF_ERROR(use_device(options_.device));
  TensorView view = make_view(nullptr, DType::kF32, 1, host.cols, device());
  ASSIGN_OR_RETURN(DeviceBuffer buffer,
                   DeviceBuffer::create(static_cast<std::int64_t>(view.bytes())));
  RETURN_IF_ERROR(buffer.upload(0, values.data(), buffer.bytes()));
  view.data = buffer.release();
  return Tensor(view, free_device);
}

Status CudaBackend::set_rope(std::span<const float> inv_freq) {
  RETURN_IF_ERROR(use_device(options_.device));
  graphs_.clear();  // they read the frequencies where they were
  const auto bytes = static_cast<std::int64_t>(inv_freq.size_bytes());
  ASSIGN_OR_RETURN(inv_freq_, DeviceBuffer::create(bytes));
  return inv_freq_.upload(0, inv_freq.data(), bytes);
}

// ---- Order ----

Status CudaBackend::begin_step(const StepView& step) {
  CHECK(!graphs_.open(), "a step begins within a part");
  status_ = {};
  run([&] { return steps_.begin(step, staging_, stream_); });
  return status_;
}

Event CudaBackend::record() {
  run([&] {
    route_was_last_ = after_route_;
    return tickets_.enqueue(stream_);
  });
  // After an error the last one before it: nothing more will happen.
  return Event{status_.ok() ? tickets_.take() : tickets_.last()};
}

bool CudaBackend::done(Event event) {
  CHECK(!graphs_.open(), "asking for an event within a part");
  const Result<bool> done = tickets_.done(event.ticket, stream_);
  if (done.ok() && *done && meter_ && status_.ok()) status_ = meter_->look();
  if (done.ok()) return *done;
  if (status_.ok()) status_ = done.error();
  return true;  // nothing more will happen
}

void CudaBackend::begin_part(const StepView& step, int part) {
  CHECK(step.may_have_parts(), "a part of a step of {} rows, or for another purpose than decode",
        step.num_rows());
  if (!status_.ok()) return;
  status_ = use_device(options_.device);
  if (!status_.ok()) return;
  graphs_.begin({&step, part, steps_.tables(step).tokens, scratch_.allocations()}, stream_);
}

void CudaBackend::end_part() {
  if (!graphs_.open()) return;
  const Result<bool> launches = graphs_.end(!status_.ok(), stream_);
  if (!status_.ok()) return;
  if (!launches.ok()) {
    status_ = launches.error();
  } else if (*launches) {
    run([&] { return graphs_.launch(stream_); });
  }
}

void CudaBackend::wait_for(Backend& other, Event event) {
  CHECK(!graphs_.open(), "waiting for another backend within a part");
  if (event.ticket == 0 || &other == this) return;
  if (auto* cuda = dynamic_cast<CudaBackend*>(&other)) {
    CHECK(!cuda->graphs_.open(), "waiting for a backend within its part");
    run([&]() -> Status {
      ASSIGN_OR_RETURN(const bool done, cuda->tickets_.done(event.ticket, cuda->stream_));
      if (done) return {};
      RETURN_IF_ERROR(use_device(cuda->options_.device));
      ASSIGN_OR_RETURN(const StreamEvent* const reached, cuda->tickets_.event_now(cuda->stream_));
      RETURN_IF_ERROR(use_device(options_.device));
      return reached->hold(stream_);
    });
    return;
  }
  while (!other.done(event)) std::this_thread::yield();
}

Status CudaBackend::finish() {
  CHECK(!graphs_.open(), "waiting within a part");
  // Copies of a call that failed half way may have nothing in the stream that waits for them.
  Status uploaded = uploads_.synchronize();
  Status finished = stream_.synchronize();
  if (status_.ok()) status_ = std::move(uploaded);
  if (status_.ok()) status_ = std::move(finished);
  return status_;
}

// ---- Copies ----

void CudaBackend::copy_in(const TensorView& dst, const void* src) {
  run([&] { return copy_rows(dst.data, dst.row_stride, src, dst.cols, dst, stream_); });
}

void CudaBackend::copy_out(void* dst, const TensorView& src) {
  run([&] {
    if (static_cast<std::int64_t>(src.bytes()) > kPostedBytes || !is_pinned(dst)) {
      return copy_rows(dst, src.cols, src.data, src.row_stride, src, stream_);
    }
    route_was_last_ = after_route_;
    return launch_post(src, dst, stream_);
  });
}

void CudaBackend::copy(const TensorView& dst, const TensorView& src) {
  CHECK(dst.rows == src.rows && dst.cols == src.cols && dst.dtype == src.dtype,
        "copy of {} [{}, {}] to {} [{}, {}]", dtype_name(src.dtype), src.rows, src.cols,
        dtype_name(dst.dtype), dst.rows, dst.cols);
  run([&] { return copy_rows(dst.data, dst.row_stride, src.data, src.row_stride, src, stream_); });
}

}  // namespace stoker::gpu
