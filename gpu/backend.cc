// Memory, order and copies. Operations: backend_ops.cc, backend_experts.cc.
#include "gpu/backend.h"

#include <cuda_runtime_api.h>

#include <thread>

#include "gpu/error.h"
#include "gpu/run-inl.h"
#include "gpu/weights.h"

namespace stoker::gpu {
namespace {

constexpr int kNumEvents = 256;
constexpr int kOldestMajor = 8;

void free_device(void* data) { DeviceMemoryDeleter{}(data); }
void free_pinned(void* data) { PinnedMemoryDeleter{}(data); }

Status check_options(const CudaBackendOptions& options) {
  const auto allowed = [](DType dtype) { return dtype == DType::kF32 || dtype == DType::kBf16; };
  if (!allowed(options.activations)) {
    return make_error(ErrorCode::kUnsupported, "activations in {}; CUDA has BF16 and F32",
                      dtype_name(options.activations));
  }
  if (!allowed(options.kv_cache)) {
    return make_error(ErrorCode::kUnsupported, "a KV cache in {}; CUDA has BF16 and F32",
                      dtype_name(options.kv_cache));
  }
  return {};
}

// The oldest generation with kernels, and kernels for this one in this build.
Status check_device(int device) {
  cudaDeviceProp properties;
  RETURN_IF_ERROR(
      cuda_status(cudaGetDeviceProperties(&properties, device), "reading device properties"));
  if (properties.major < kOldestMajor) {
    return make_error(ErrorCode::kUnsupported,
                      "{} has compute capability {}.{}; the kernels need {}.0 or newer",
                      properties.name, properties.major, properties.minor, kOldestMajor);
  }
  RETURN_IF_ERROR(kernels_available(), "{}, compute capability {}.{}", properties.name,
                  properties.major, properties.minor);
  return {};
}

// Copies rows of either place; strides in elements.
Status copy_rows(void* dst, std::int64_t dst_stride, const void* src, std::int64_t src_stride,
                 const TensorView& shape, const Stream& stream) {
  const auto element = static_cast<std::size_t>(dtype_bytes(shape.dtype));
  const auto width = static_cast<std::size_t>(shape.cols) * element;
  if (width == 0 || shape.rows == 0) return {};
  const auto handle = static_cast<cudaStream_t>(stream.handle());
  if (shape.rows == 1) {
    return cuda_status(cudaMemcpyAsync(dst, src, width, cudaMemcpyDefault, handle), "copying");
  }
  return cuda_status(
      cudaMemcpy2DAsync(dst, static_cast<std::size_t>(dst_stride) * element, src,
                        static_cast<std::size_t>(src_stride) * element, width,
                        static_cast<std::size_t>(shape.rows), cudaMemcpyDefault, handle),
      "copying");
}

}  // namespace

CudaBackend::CudaBackend(const CudaBackendOptions& options, Stream stream, StagingRing staging,
                         std::vector<StreamEvent> events, std::unique_ptr<CublasLt> cublaslt)
    : options_(options),
      stream_(std::move(stream)),
      staging_(std::move(staging)),
      events_(std::move(events)),
      cublaslt_(std::move(cublaslt)) {}

CudaBackend::~CudaBackend() { (void)stream_.synchronize(); }

Result<std::unique_ptr<Backend>> CudaBackend::create(const CudaBackendOptions& options) {
  RETURN_IF_ERROR(check_options(options));
  RETURN_IF_ERROR(use_device(options.device));
  RETURN_IF_ERROR(check_device(options.device));
  ASSIGN_OR_RETURN(Stream stream, Stream::create());
  ASSIGN_OR_RETURN(StagingRing staging, StagingRing::create(options.staging_bytes));
  std::vector<StreamEvent> events;
  for (int i = 0; i < kNumEvents; ++i) {
    ASSIGN_OR_RETURN(StreamEvent event, StreamEvent::create());
    events.push_back(std::move(event));
  }
  std::unique_ptr<CublasLt> cublaslt;
  if (options.activations == DType::kBf16) cublaslt = CublasLt::open();
  return std::unique_ptr<Backend>(new CudaBackend(options, std::move(stream), std::move(staging),
                                                  std::move(events), std::move(cublaslt)));
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
  ASSIGN_OR_RETURN(std::unique_ptr<CudaWeight> weight, CudaWeight::row_major(host, device()));
  return WeightPtr(std::move(weight));
}

Result<WeightPtr> CudaBackend::adopt_kv_b(const QuantView& host, const AttentionDims& dims) {
  CHECK(host.rows == std::int64_t{dims.num_heads} * (dims.nope_dim + dims.value_dim) &&
            host.cols == dims.latent_dim,
        "kv_b [{}, {}]", host.rows, host.cols);
  return adopt_embedding(host);  // attention reads rows of it, too
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
  const auto bytes = static_cast<std::int64_t>(inv_freq.size_bytes());
  ASSIGN_OR_RETURN(inv_freq_, DeviceBuffer::create(bytes));
  return inv_freq_.upload(0, inv_freq.data(), bytes);
}

// ---- Order ----

Status CudaBackend::begin_step(const StepView& step) {
  status_ = {};
  run([&] { return steps_.begin(step, staging_, stream_); });
  return status_;
}

Event CudaBackend::record() {
  const std::uint64_t ticket = ++last_ticket_;
  run([&] { return events_[ticket % kNumEvents].record(stream_); });
  return Event{ticket};
}

bool CudaBackend::done(Event event) {
  if (event.ticket == 0) return true;
  const Result<bool> done = events_[event.ticket % kNumEvents].done();
  if (done.ok()) return *done;
  if (status_.ok()) status_ = done.error();
  return true;  // nothing more will happen
}

void CudaBackend::wait_for(Backend& other, Event event) {
  if (event.ticket == 0) return;
  if (auto* cuda = dynamic_cast<CudaBackend*>(&other)) {
    run([&] { return cuda->events_[event.ticket % kNumEvents].hold(stream_); });
    return;
  }
  while (!other.done(event)) std::this_thread::yield();
}

Status CudaBackend::finish() {
  Status finished = stream_.synchronize();
  if (status_.ok()) status_ = std::move(finished);
  return status_;
}

// ---- Copies ----

void CudaBackend::copy_in(const TensorView& dst, const void* src) {
  run([&] { return copy_rows(dst.data, dst.row_stride, src, dst.cols, dst, stream_); });
}

void CudaBackend::copy_out(void* dst, const TensorView& src) {
  run([&] { return copy_rows(dst, src.cols, src.data, src.row_stride, src, stream_); });
}

void CudaBackend::copy(const TensorView& dst, const TensorView& src) {
  CHECK(dst.rows == src.rows && dst.cols == src.cols && dst.dtype == src.dtype,
        "copy of {} [{}, {}] to {} [{}, {}]", dtype_name(src.dtype), src.rows, src.cols,
        dtype_name(dst.dtype), dst.rows, dst.cols);
  run([&] { return copy_rows(dst.data, dst.row_stride, src.data, src.row_stride, src, stream_); });
}

}  // namespace stoker::gpu
