#include "gpu/weights.h"

#include <cstring>
#include <vector>

#include "quant/tile16.h"

namespace stoker::gpu {
namespace {

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

std::int64_t payload_bytes(const QuantView& host) {
  return host.rows * host.cols * host.spec.element_bits() / 8;
}

// The same weight elsewhere.
QuantView moved(const QuantView& host, const std::byte* payload, const std::byte* scales,
                DeviceId device) {
  QuantView view = host;
  view.payload = payload;
  view.scales = host.spec.has_scales() ? scales : nullptr;
  view.device = device;
  return view;
}

}  // namespace

Result<std::unique_ptr<CudaWeight>> CudaWeight::tiled(const QuantView& host, DeviceId device) {
  RETURN_IF_ERROR(check_host(host));
  const quant::Tile16 tile = quant::tile16_of(host);
  std::vector<std::byte> payload(static_cast<std::size_t>(tile.payload_bytes()));
  std::vector<std::byte> scales(static_cast<std::size_t>(tile.scale_bytes()));
  quant::relay_tile16(host, 0, host.rows, payload.data(), scales.data());
  ASSIGN_OR_RETURN(std::unique_ptr<CudaWeight> weight, upload(host, payload, scales, device));
  weight->view_.layout = WeightLayout::kTile16;
  return weight;
}

Result<std::unique_ptr<CudaWeight>> CudaWeight::row_major(const QuantView& host, DeviceId device) {
  RETURN_IF_ERROR(check_host(host));
  const auto payload = static_cast<std::size_t>(payload_bytes(host));
  const auto stored = static_cast<std::size_t>(host.stored_bytes());
  return upload(host, {host.payload, payload}, {host.scales, stored - payload}, device);
}

// Scales beside a payload of whole blocks of memory (device_allocation_bytes()) would take one
// more.
Result<std::unique_ptr<CudaWeight>> CudaWeight::upload(const QuantView& host,
                                                       std::span<const std::byte> payload,
                                                       std::span<const std::byte> scales,
                                                       DeviceId device) {
  ASSIGN_OR_RETURN(DeviceBuffer first, DeviceBuffer::create(std::ssize(payload)));
  RETURN_IF_ERROR(first.upload(0, payload.data(), first.bytes()));
  DeviceBuffer second;
  if (!scales.empty()) {
    ASSIGN_OR_RETURN(second, DeviceBuffer::create(std::ssize(scales)));
    RETURN_IF_ERROR(second.upload(0, scales.data(), second.bytes()));
  }
  const QuantView view = moved(host, first.data(), second.data(), device);
  return std::unique_ptr<CudaWeight>(new CudaWeight(std::move(first), std::move(second), view));
}

Result<std::unique_ptr<CudaWeight>> CudaWeight::on_host(const QuantView& host) {
  RETURN_IF_ERROR(check_host(host));
  constexpr std::int64_t kScaleAlign = 16;
  const std::int64_t payload = payload_bytes(host), scales = host.stored_bytes() - payload;
  const std::int64_t scales_at = (payload + kScaleAlign - 1) / kScaleAlign * kScaleAlign;
  ASSIGN_OR_RETURN(PinnedBuffer memory, PinnedBuffer::create(scales_at + scales));
  std::memcpy(memory.data(), host.payload, static_cast<std::size_t>(payload));
  if (host.spec.has_scales()) {
    std::memcpy(memory.data() + scales_at, host.scales, static_cast<std::size_t>(scales));
  }
  const QuantView view = moved(host, memory.data(), memory.data() + scales_at, kHost);
  return std::unique_ptr<CudaWeight>(new CudaWeight(std::move(memory), view));
}

}  // namespace stoker::gpu
