#include "cpu/cpu_weight.h"

#include <algorithm>
#include <atomic>
#include <cstring>

#include "quant/fp8.h"
#include "quant/tile16.h"

namespace stoker::cpu {
namespace {

constexpr std::int64_t kRowsPerTask = 128;  // whole scale blocks
constexpr std::int64_t kScaleBlock = 128;

std::int64_t ceil_div(std::int64_t n, std::int64_t by) { return (n + by - 1) / by; }
std::int64_t align_up(std::int64_t n, std::int64_t to) { return ceil_div(n, to) * to; }

Status check_host(const QuantView& host) {
  if (host.spec.is_integer()) {
    return make_error(ErrorCode::kUnsupported, "{} weights are for routed experts alone",
                      quant_format_name(host.spec.format));
  }
  if (host.layout != WeightLayout::kRowMajor || host.device != kHost) {
    return make_error(ErrorCode::kUnsupported, "a weight must be adopted row-major from the host");
  }
  if (host.spec.group <= 0 || host.spec.group % kInputAlign != 0) {
    return make_error(ErrorCode::kUnsupported, "groups of {} inputs", host.spec.group);
  }
  return {};
}

Status check_codes(const QuantView& host, Team& team) {
  if (host.spec.format != QuantFormat::kF8E4m3B128) return {};
  std::atomic<bool> nan = false;
  const auto* const codes = reinterpret_cast<const std::uint8_t*>(host.payload);
  team.run(static_cast<int>(ceil_div(host.rows, kRowsPerTask)), [&](int task, int) {
    const std::int64_t begin = task * kRowsPerTask;
    const std::int64_t count = std::min(kRowsPerTask, host.rows - begin);
    if (quant::fp8_has_nan(codes + begin * host.cols, count * host.cols)) nan = true;
  });
  if (nan) return make_error(ErrorCode::kCorrupt, "an FP8 weight holds NaN");
  return {};
}

// Bytes of payload and scales in tile16 layout, each padded to a vector.
std::int64_t tiled_bytes(const quant::Tile16& tile) {
  return align_up(tile.payload_bytes(), 64) + align_up(tile.scale_bytes(), 64);
}

// A view of such bytes.
QuantView tiled_view(const quant::Tile16& tile, std::byte* at) {
  QuantView view;
  view.payload = at;
  view.scales = tile.spec.has_scales() ? at + align_up(tile.payload_bytes(), 64) : nullptr;
  view.rows = tile.rows;
  view.cols = tile.cols;
  view.spec = tile.spec;
  view.layout = WeightLayout::kTile16;
  return view;
}

void relay(const QuantView& src, std::int64_t row_begin, std::int64_t num_rows,
           const QuantView& dst) {
  const quant::Tile16 tile = quant::tile16_of(dst);
  const std::int64_t first = row_begin / quant::kTileRows;
  quant::relay_tile16(src, row_begin, num_rows,
                      const_cast<std::byte*>(dst.payload) + first * tile.tile_bytes(),
                      const_cast<std::byte*>(dst.scales) + first * tile.tile_scale_bytes());
}

}  // namespace

Result<std::unique_ptr<TiledWeight>> TiledWeight::create(const QuantView& host, Team& team) {
  RETURN_IF_ERROR(check_host(host));
  RETURN_IF_ERROR(check_codes(host, team));
  auto weight = std::make_unique<TiledWeight>();
  const quant::Tile16 tile = quant::tile16_of(host);
  ASSIGN_OR_RETURN(weight->memory_, Memory::create(tiled_bytes(tile)));
  weight->view_ = tiled_view(tile, weight->memory_.data());
  weight->matrix_ = tile_matrix(weight->view_);
  team.run(static_cast<int>(ceil_div(host.rows, kRowsPerTask)), [&](int task, int) {
    const std::int64_t begin = task * kRowsPerTask;
    relay(host, begin, std::min(kRowsPerTask, host.rows - begin), weight->view_);
  });
  return weight;
}

Result<std::unique_ptr<EmbeddingWeight>> EmbeddingWeight::create(const QuantView& host) {
  RETURN_IF_ERROR(check_host(host));
  auto weight = std::make_unique<EmbeddingWeight>();
  const std::int64_t payload = host.rows * host.cols * host.spec.element_bits() / 8;
  const std::int64_t scales = host.stored_bytes() - payload;
  ASSIGN_OR_RETURN(weight->memory_, Memory::create(align_up(payload, 64) + scales));
  weight->view_ = host;
  std::memcpy(weight->memory_.data(), host.payload, payload);
  weight->view_.payload = weight->memory_.data();
  if (scales > 0) {
    std::byte* const at = weight->memory_.data() + align_up(payload, 64);
    std::memcpy(at, host.scales, scales);
    weight->view_.scales = at;
  }
  return weight;
}

void EmbeddingWeight::read_row(const Kernels& kernels, std::int64_t index, DType dtype, void* out,
                               float* wide) const {
  const std::byte* const row = view_.payload + index * view_.cols * view_.spec.element_bits() / 8;
  switch (view_.spec.format) {
    case QuantFormat::kF32:
      return kernels.convert(row, DType::kF32, out, dtype, view_.cols);
    case QuantFormat::kBf16:
      return kernels.convert(row, DType::kBf16, out, dtype, view_.cols);
    case QuantFormat::kF16:
    case QuantFormat::kF8E4m3B128:
    case QuantFormat::kInt8:
    case QuantFormat::kInt4:
      for (std::int64_t i = 0; i < view_.cols; ++i) {
        wide[i] = quant::element_at(view_, index, i) * quant::scale_at(view_, index, i);
      }
      return kernels.convert(wide, DType::kF32, out, dtype, view_.cols);
  }
}

namespace {

// A row-major matrix of one head, built before it is tiled.
struct HeadMatrix {
  std::vector<std::byte> payload;
  std::vector<float> scales;
  QuantView view;
};

HeadMatrix make_head(std::int64_t rows, std::int64_t cols, QuantSpec spec) {
  HeadMatrix head;
  head.payload.resize(rows * cols * spec.element_bits() / 8);
  if (spec.has_scales()) {
    head.scales.resize(ceil_div(rows, kScaleBlock) * ceil_div(cols, kScaleBlock));
  }
  head.view.payload = head.payload.data();
  head.view.scales = reinterpret_cast<const std::byte*>(head.scales.data());
  head.view.rows = rows;
  head.view.cols = cols;
  head.view.spec = spec;
  return head;
}

// Rows [row_begin, + dst.rows) of `host`, transposed if `transposed`. Keeps the stored elements
// where the formats agree, else widens to F32.
void cut_head(const QuantView& host, std::int64_t row_begin, bool transposed, HeadMatrix& dst) {
  const std::int64_t rows = dst.view.rows, cols = dst.view.cols;
  const bool same = host.spec == dst.view.spec;
  const std::int64_t size = dst.view.spec.element_bits() / 8;
  for (std::int64_t r = 0; r < rows; ++r) {
    for (std::int64_t c = 0; c < cols; ++c) {
      const std::int64_t from_row = row_begin + (transposed ? c : r);
      const std::int64_t from_col = transposed ? r : c;
      std::byte* const to = dst.payload.data() + (r * cols + c) * size;
      if (same) {
        std::memcpy(to, host.payload + (from_row * host.cols + from_col) * size, size);
      } else {
        const float value =
            quant::element_at(host, from_row, from_col) * quant::scale_at(host, from_row, from_col);
        std::memcpy(to, &value, sizeof value);
      }
    }
  }
  if (!dst.view.spec.has_scales()) return;
  const std::int64_t block_cols = ceil_div(cols, kScaleBlock);
  for (std::int64_t r = 0; r < ceil_div(rows, kScaleBlock); ++r) {
    for (std::int64_t c = 0; c < block_cols; ++c) {
      const std::int64_t row = (transposed ? c : r) * kScaleBlock + row_begin;
      const std::int64_t col = (transposed ? r : c) * kScaleBlock;
      dst.scales[r * block_cols + c] = quant::scale_at(host, row, col);
    }
  }
}

}  // namespace

Result<std::unique_ptr<KvBWeight>> KvBWeight::create(const QuantView& host,
                                                     const AttentionDims& dims, Team& team) {
  RETURN_IF_ERROR(check_host(host));
  RETURN_IF_ERROR(check_codes(host, team));
  const std::int64_t head_rows = dims.nope_dim + dims.value_dim;
  if (host.rows != dims.num_heads * head_rows || host.cols != dims.latent_dim) {
    return make_error(ErrorCode::kInvalidArgument,
                      "kv_b is [{}, {}], expected {} heads of {} rows and {} columns", host.rows,
                      host.cols, dims.num_heads, head_rows, dims.latent_dim);
  }
  QuantSpec spec = host.spec;
  if (spec.has_scales() &&
      (dims.nope_dim % kScaleBlock != 0 || dims.value_dim % kScaleBlock != 0)) {
    spec = QuantSpec{};
  }
  const quant::Tile16 key_tile{dims.latent_dim, dims.nope_dim, spec};
  const quant::Tile16 value_tile{dims.value_dim, dims.latent_dim, spec};
  const std::int64_t head_bytes = tiled_bytes(key_tile) + tiled_bytes(value_tile);

  auto weight = std::make_unique<KvBWeight>();
  weight->rows_ = host.rows;
  weight->cols_ = host.cols;
  weight->keys_.resize(dims.num_heads);
  weight->values_.resize(dims.num_heads);
  ASSIGN_OR_RETURN(weight->memory_, Memory::create(dims.num_heads * head_bytes));
  team.run(dims.num_heads, [&](int head, int) {
    std::byte* const at = weight->memory_.data() + head * head_bytes;
    HeadMatrix key = make_head(dims.latent_dim, dims.nope_dim, spec);
    cut_head(host, head * head_rows, /*transposed=*/true, key);
    const QuantView key_view = tiled_view(key_tile, at);
    relay(key.view, 0, dims.latent_dim, key_view);
    weight->keys_[head] = tile_matrix(key_view);
    HeadMatrix value = make_head(dims.value_dim, dims.latent_dim, spec);
    cut_head(host, head * head_rows + dims.nope_dim, /*transposed=*/false, value);
    const QuantView value_view = tiled_view(value_tile, at + tiled_bytes(key_tile));
    relay(value.view, 0, dims.value_dim, value_view);
    weight->values_[head] = tile_matrix(value_view);
  });
  return weight;
}

}  // namespace stoker::cpu
