#include "gpu/weights.h"

#include <cstring>
#include <vector>

#include "quant/tile16.h"

namespace stoker::gpu {
namespace {

constexpr std::int64_t kScaleAlign = 16;

std::int64_t aligned(std::int64_t bytes) {
  return (bytes + kScaleAlign - 1) / kScaleAlign * kScaleAlign;
}

Status check_host(const QuantView& host) {
  CHECK(host.device == kHost && host.layout == WeightLayout::kRowMajor,
        "not row-major on the host");
  if (host.spec.is_integer()) {
    return make_error(ErrorCode::kUnsupported, "{} weights are for routed experts alone",
                      quant_format_name(host.spec.format));
  }
  if (host.spec.group <= 0 || host.spec.group % 8 != 0) {
    return make_error(ErrorCode::kUnsupported,
                      "a weight with groups of {} inputs; the CUDA kernels need a multiple of 8",
                      host.spec.group);
  }
  if (host.spec.format == QuantFormat::kF8E4m3B128 &&
      quant::fp8_has_nan(reinterpret_cast<const std::uint8_t*>(host.payload),
                         host.rows * host.cols)) {
    return make_error(ErrorCode::kCorrupt, "an FP8 weight holds NaN");
  }
  return {};
}

// Where payload and scales of a row-major weight lie.
struct RowMajorBytes {
  std::int64_t payload, scales_at, scales;

  explicit RowMajorBytes(const QuantView& host)
      : payload(host.rows * host.cols * host.spec.element_bits() / 8),
        scales_at(aligned(payload)),
        scales(host.stored_bytes() - payload) {}
  std::int64_t total() const { return scales_at + scales; }
  QuantView view_in(const std::byte* memory, const QuantView& host, DeviceId device) const {
    QuantView view = host;
    view.payload = memory;
    view.scales = host.spec.has_scales() ? memory + scales_at : nullptr;
    view.device = device;
    return view;
  }
};

}  // namespace

Result<std::unique_ptr<CudaWeight>> CudaWeight::tiled(const QuantView& host, DeviceId device) {
  RETURN_IF_ERROR(check_host(host));
  const quant::Tile16 tile = quant::tile16_of(host);
  const std::int64_t scales_at = aligned(tile.payload_bytes());
  std::vector<std::byte> payload(static_cast<std::size_t>(tile.payload_bytes()));
  std::vector<std::byte> scales(static_cast<std::size_t>(tile.scale_bytes()));
  quant::relay_tile16(host, 0, host.rows, payload.data(), scales.data());
  ASSIGN_OR_RETURN(DeviceBuffer memory, DeviceBuffer::create(scales_at + tile.scale_bytes()));
  RETURN_IF_ERROR(memory.upload(0, payload.data(), tile.payload_bytes()));
  RETURN_IF_ERROR(memory.upload(scales_at, scales.data(), tile.scale_bytes()));
  QuantView view = host;
  view.payload = memory.data();
  view.scales = host.spec.has_scales() ? memory.data() + scales_at : nullptr;
  view.layout = WeightLayout::kTile16;
  view.device = device;
  return std::unique_ptr<CudaWeight>(new CudaWeight(std::move(memory), view));
}

Result<std::unique_ptr<CudaWeight>> CudaWeight::row_major(const QuantView& host, DeviceId device) {
  RETURN_IF_ERROR(check_host(host));
  const RowMajorBytes size(host);
  ASSIGN_OR_RETURN(DeviceBuffer memory, DeviceBuffer::create(size.total()));
  RETURN_IF_ERROR(memory.upload(0, host.payload, size.payload));
  RETURN_IF_ERROR(memory.upload(size.scales_at, host.scales, size.scales));
  const QuantView view = size.view_in(memory.data(), host, device);
  return std::unique_ptr<CudaWeight>(new CudaWeight(std::move(memory), view));
}

Result<std::unique_ptr<CudaWeight>> CudaWeight::on_host(const QuantView& host) {
  RETURN_IF_ERROR(check_host(host));
  const RowMajorBytes size(host);
  ASSIGN_OR_RETURN(PinnedBuffer memory, PinnedBuffer::create(size.total()));
  std::memcpy(memory.data(), host.payload, static_cast<std::size_t>(size.payload));
  if (host.spec.has_scales()) {
    std::memcpy(memory.data() + size.scales_at, host.scales, static_cast<std::size_t>(size.scales));
  }
  const QuantView view = size.view_in(memory.data(), host, kHost);
  return std::unique_ptr<CudaWeight>(new CudaWeight(std::move(memory), view));
}

}  // namespace stoker::gpu
