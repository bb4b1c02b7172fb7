#include "gpu/expert_uploads.h"

#include <cuda_runtime_api.h>

#include <algorithm>

#include "gpu/error.h"
#include "gpu/native.h"
#include "quant/tile16.h"

namespace stoker::gpu {
namespace {

constexpr std::int64_t kAlign = 256;
// Payloads and scales of a block stand at multiples of this (quant/expert_block.h), so that less
// lies between two that follow one another.
constexpr std::uintptr_t kBlockPadding = 64;

std::int64_t aligned(std::int64_t bytes) { return (bytes + kAlign - 1) / kAlign * kAlign; }

// Bytes of a view, and the address in it that says where they are.
struct Piece {
  const std::byte** at;
  std::int64_t bytes;

  std::uintptr_t begin() const { return reinterpret_cast<std::uintptr_t>(*at); }
  std::uintptr_t end() const { return begin() + static_cast<std::uintptr_t>(bytes); }
};

constexpr std::size_t kMostPieces = 4;  // payloads and scales of gate and up

}  // namespace

Result<ExpertUploads> ExpertUploads::create() {
  ASSIGN_OR_RETURN(Stream stream, Stream::create());
  ASSIGN_OR_RETURN(SampleTimer timer, SampleTimer::create());
  std::vector<StreamEvent> events;
  for (int i = 0; i < 2 * kNumAreas; ++i) {
    ASSIGN_OR_RETURN(StreamEvent event, StreamEvent::create());
    events.push_back(std::move(event));
  }
  const auto area = [&](std::size_t i) {
    return Area{std::move(events[2 * i]), std::move(events[2 * i + 1])};
  };
  static_assert(kNumAreas == 4);
  return ExpertUploads(std::move(stream), std::move(timer), {area(0), area(1), area(2), area(3)});
}

std::int64_t ExpertUploads::bytes_needed(const QuantView& view) {
  const quant::Tile16 tile = quant::tile16_of(view);
  return aligned(tile.payload_bytes()) + aligned(tile.scale_bytes());
}

std::int64_t ExpertUploads::buffer_bytes(std::int64_t area_bytes) {
  return kNumAreas * aligned(area_bytes);
}

Status ExpertUploads::reserve(std::int64_t area_bytes, const Stream& compute) {
  if (area_bytes <= area_bytes_) return {};
  RETURN_IF_ERROR(stream_.synchronize());
  RETURN_IF_ERROR(compute.synchronize());
  area_bytes_ = used_ = 0;
  RETURN_IF_ERROR(buffer_.grow(buffer_bytes(area_bytes)), "uploaded experts");
  area_bytes_ = aligned(area_bytes);
  return {};
}

Status ExpertUploads::upload(std::span<QuantView* const> views, DeviceId device) {
  Piece pieces[kMostPieces];
  std::size_t num_pieces = 0;
  bool from_host = true;
  for (QuantView* const view : views) {
    CHECK(num_pieces + 2 <= kMostPieces, "{} matrices of a part", views.size());
    const quant::Tile16 tile = quant::tile16_of(*view);
    pieces[num_pieces++] = {&view->payload, tile.payload_bytes()};
    if (view->spec.has_scales()) pieces[num_pieces++] = {&view->scales, tile.scale_bytes()};
    from_host = from_host && view->device == kHost;
    view->device = device;
  }
  std::sort(pieces, pieces + num_pieces,
            [](const Piece& a, const Piece& b) { return a.begin() < b.begin(); });
  if (used_ == 0) {
    RETURN_IF_ERROR(areas_[static_cast<std::size_t>(open_)].freed.hold(stream_));
    RETURN_IF_ERROR(timer_.begin(stream_));
  }
  if (!from_host) timer_.drop();
  for (std::size_t i = 0; i < num_pieces;) {
    // Pieces that follow one another travel together, padding included.
    const std::uintptr_t begin = pieces[i].begin();
    std::uintptr_t end = pieces[i].end();
    std::size_t last = i + 1;
    while (last < num_pieces && pieces[last].begin() >= end &&
           pieces[last].begin() - end < kBlockPadding &&
           (pieces[last].begin() - begin) % kBlockPadding == 0) {
      end = pieces[last++].end();
    }
    const auto bytes = static_cast<std::int64_t>(end - begin);
    CHECK(has_room(bytes), "{} bytes beside {} of {}", bytes, used_, area_bytes_);
    std::byte* const dst = buffer_.data() + open_ * area_bytes_ + used_;
    used_ += aligned(bytes);
    RETURN_IF_ERROR(cuda_status(cudaMemcpyAsync(dst, *pieces[i].at, static_cast<std::size_t>(bytes),
                                                cudaMemcpyDefault, native(stream_)),
                                "uploading an expert"));
    for (; i < last; ++i) *pieces[i].at = dst + (pieces[i].begin() - begin);
  }
  return {};
}

Status ExpertUploads::hand_over(const Stream& compute) {
  if (used_ == 0) return {};
  if (timer_.timing()) timed_bytes_ = used_;
  RETURN_IF_ERROR(timer_.end(stream_));
  StreamEvent& filled = areas_[static_cast<std::size_t>(open_)].filled;
  RETURN_IF_ERROR(filled.record(stream_));
  return filled.hold(compute);
}

Result<std::optional<TimedUpload>> ExpertUploads::take_timing() {
  ASSIGN_OR_RETURN(const std::optional<double> us, timer_.take_us());
  return us ? std::optional(TimedUpload{timed_bytes_, *us}) : std::nullopt;
}

Status ExpertUploads::next_area(const Stream& compute) {
  if (used_ == 0) return {};
  StreamEvent& freed = areas_[static_cast<std::size_t>(open_)].freed;
  open_ = (open_ + 1) % kNumAreas;
  used_ = 0;
  return freed.record(compute);
}

}  // namespace stoker::gpu
