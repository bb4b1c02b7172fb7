#include "cpu/products.h"

#include <algorithm>

#include "core/base/check.h"
#include "quant/tile16.h"

namespace stoker::cpu {
namespace {

// A task reads about this much weight: long enough for a sequential stream, short enough to share
// the last ones out.
constexpr std::int64_t kPieceBytes = std::int64_t{256} << 10;
// Less work than this is done where it is: waking others takes longer.
constexpr std::int64_t kInlineBytes = std::int64_t{64} << 10;
constexpr int kPanelTiles = kPanelCols / quant::kTileRows;
constexpr int kTileFloats = kMostMatmulRows * kPanelCols;

std::int64_t ceil_div(std::int64_t n, std::int64_t by) { return (n + by - 1) / by; }

std::byte* row_at(const TensorView& view, std::int64_t row) {
  return static_cast<std::byte*>(view.data) + row * view.row_stride * dtype_bytes(view.dtype);
}

}  // namespace

Products::Products(Team& team, const Kernels& kernels, DType activations, Isa isa)
    : team_(team),
      kernels_(kernels),
      activations_(activations),
      matmul_(team.num_threads(), isa),
      workers_(team.num_threads()) {
  products_.reserve(1024);
  pieces_.reserve(8192);
}

DType Products::panel_dtype(QuantFormat format) const {
  const bool narrow = format != QuantFormat::kF32 && format != QuantFormat::kF16;
  return activations_ == DType::kBf16 && narrow && matmul_.has_bf16() ? DType::kBf16 : DType::kF32;
}

Status Products::prepare(std::int64_t cols, QuantFormat format) {
  const DType dtype = panel_dtype(format);
  RETURN_IF_ERROR(matmul_.prepare(cols, dtype));
  const std::int64_t depth = ceil_div(cols, kPanelDepthAlign) * kPanelDepthAlign;
  for (Worker& worker : workers_) {
    worker.panel.reserve(depth * kPanelCols * dtype_bytes(dtype));
    worker.up_panel.reserve(depth * kPanelCols * dtype_bytes(dtype));
    worker.tiles.reserve_array<float>(2 * kTileFloats + 2 * kPanelCols);
  }
  return {};
}

void Products::begin(std::int64_t cols, DType panel_dtype) {
  cols_ = cols;
  decode_stride_ = input_stride(cols);
  panel_dtype_ = panel_dtype;
  decode_rows_.clear();
  prefill_rows_.clear();
  products_.clear();
  pieces_.clear();
  num_lists_ = 0;
}

std::int32_t* Products::indices(std::size_t count) {
  if (num_lists_ == index_lists_.size()) index_lists_.emplace_back();
  std::vector<std::int32_t>& list = index_lists_[num_lists_++];
  if (list.size() < count) list.resize(count);
  return list.data();
}

std::int32_t Products::stage(Purpose purpose, const TensorView& x, std::int64_t row) {
  CHECK(x.cols == cols_ && row >= 0 && row < x.rows, "row {} of [{}, {}], expected {} columns", row,
        x.rows, x.cols, cols_);
  auto& rows = purpose == Purpose::kDecode ? decode_rows_ : prefill_rows_;
  rows.push_back({row_at(x, row), x.dtype});
  return static_cast<std::int32_t>(rows.size()) - 1;
}

void Products::add(const Product& product) {
  if (product.num_rows == 0) return;
  CHECK(product.w.cols == cols_, "{} inputs, staged {}", product.w.cols, cols_);
  CHECK(product.purpose == Purpose::kDecode || panel_dtype(product.w.format) == panel_dtype_,
        "{} rows staged for {} weights", dtype_name(panel_dtype_),
        quant_format_name(product.w.format));
  products_.push_back(product);
  cut(static_cast<std::int32_t>(products_.size()) - 1);
}

// Splits a product into tasks. The result does not depend on where it is cut.
void Products::cut(std::int32_t index) {
  const Product& product = products_[index];
  const auto num_tiles = static_cast<std::int32_t>(ceil_div(product.w.rows, quant::kTileRows));
  std::int64_t step = kPanelTiles;
  if (product.purpose == Purpose::kDecode) {
    const std::int64_t bytes = product.w.tile_bytes * (product.up.payload != nullptr ? 2 : 1);
    const std::int64_t share = ceil_div(num_tiles, 4 * team_.num_threads());
    step = std::max<std::int64_t>(1, std::min(share, kPieceBytes / bytes));
    if (product.num_rows > 1) step += step % 2;  // tiles are taken in pairs where rows are many
    if (num_tiles * bytes * product.num_rows <= kInlineBytes) step = num_tiles;
  }
  for (std::int32_t tile = 0; tile < num_tiles; tile += static_cast<std::int32_t>(step)) {
    pieces_.push_back(
        {index, tile, static_cast<std::int32_t>(std::min<std::int64_t>(tile + step, num_tiles))});
  }
}

void Products::copy_rows() {
  decode_base_ = decode_x_.reserve_array<float>(decode_rows_.size() * decode_stride_);
  const std::int64_t row_bytes = cols_ * dtype_bytes(panel_dtype_);
  prefill_base_ = nullptr;
  if (!prefill_rows_.empty()) {
    // The last tile may reach beyond the last row: what lies there is computed and dropped.
    prefill_base_ = static_cast<std::byte*>(
        prefill_x_.reserve((prefill_rows_.size() + kMostMatmulRows) * row_bytes));
  }
  const auto num_decode = static_cast<int>(decode_rows_.size());
  const int num_rows = num_decode + static_cast<int>(prefill_rows_.size());
  const auto copy = [&](int row) {
    if (row < num_decode) {
      kernels_.prepare_row(decode_rows_[row].src, decode_rows_[row].dtype, cols_,
                           decode_base_ + row * decode_stride_);
    } else {
      const StagedRow& from = prefill_rows_[row - num_decode];
      kernels_.convert(from.src, from.dtype, prefill_base_ + (row - num_decode) * row_bytes,
                       panel_dtype_, cols_);
    }
  };
  constexpr int kRowsPerTask = 8;
  if (num_rows <= kRowsPerTask) {
    for (int row = 0; row < num_rows; ++row) copy(row);
    return;
  }
  team_.run((num_rows + kRowsPerTask - 1) / kRowsPerTask, [&](int task, int) {
    const int end = std::min(num_rows, (task + 1) * kRowsPerTask);
    for (int row = task * kRowsPerTask; row < end; ++row) copy(row);
  });
}

void Products::run() {
  if (pieces_.empty()) return;
  copy_rows();
  team_.run(static_cast<int>(pieces_.size()), [&](int task, int worker) {
    const Piece& piece = pieces_[task];
    const Product& product = products_[piece.product];
    if (product.purpose == Purpose::kDecode) {
      run_decode(product, piece);
    } else {
      run_prefill(product, piece, worker);
    }
  });
}

void Products::run_decode(const Product& product, const Piece& piece) {
  kernels_.tile_product({.w = product.w,
                         .up = product.up,
                         .x = decode_base_,
                         .x_stride = decode_stride_,
                         .x_rows = product.x_rows,
                         .y = product.y.data,
                         .y_dtype = product.y.dtype,
                         .y_stride = product.y.row_stride,
                         .y_rows = product.y_rows,
                         .num_rows = product.num_rows,
                         .tile_begin = piece.tile_begin,
                         .tile_end = piece.tile_end});
}

void Products::run_prefill(const Product& product, const Piece& piece, int worker) {
  const bool gated = product.up.payload != nullptr;
  void* const panel = workers_[worker].panel.reserve(0);
  void* const up_panel = workers_[worker].up_panel.reserve(0);
  auto* const tile = static_cast<float*>(workers_[worker].tiles.reserve(0));
  auto* const up_tile = tile + kTileFloats;
  auto* const scratch = reinterpret_cast<std::byte*>(up_tile + kTileFloats);
  kernels_.decode_panel(product.w, piece.tile_begin, panel_dtype_, panel);
  if (gated) kernels_.decode_panel(product.up, piece.tile_begin, panel_dtype_, up_panel);

  const std::int64_t row_bytes = cols_ * dtype_bytes(panel_dtype_);
  const std::int64_t first_col = std::int64_t{piece.tile_begin} * quant::kTileRows;
  const auto num_cols =
      static_cast<int>(std::min<std::int64_t>(kPanelCols, product.w.rows - first_col));
  const int tile_rows = matmul_rows(panel_dtype_);
  for (int begin = 0; begin < product.num_rows; begin += tile_rows) {
    const std::byte* const x = prefill_base_ + (product.x_rows[0] + begin) * row_bytes;
    matmul_.run(worker, cols_, panel_dtype_, x, panel, tile);
    if (gated) matmul_.run(worker, cols_, panel_dtype_, x, up_panel, up_tile);
    const int num_rows = std::min(tile_rows, product.num_rows - begin);
    for (int i = 0; i < num_rows; ++i) {
      const std::int32_t row = product.y_rows != nullptr ? product.y_rows[begin + i] : begin + i;
      finish_row(product, tile + i * kPanelCols, gated ? up_tile + i * kPanelCols : nullptr,
                 num_cols, row_at(product.y, row) + first_col * dtype_bytes(product.y.dtype),
                 scratch);
    }
  }
}

// Rounds, and with `up` gates, one row of a tile.
void Products::finish_row(const Product& product, const float* gate, const float* up, int num_cols,
                          void* y, std::byte* scratch) const {
  const DType dtype = product.y.dtype;
  if (up == nullptr) {
    kernels_.convert(gate, DType::kF32, y, dtype, num_cols);
    return;
  }
  std::byte* const rounded_up = scratch + kPanelCols * sizeof(float);
  kernels_.convert(gate, DType::kF32, scratch, dtype, num_cols);
  kernels_.convert(up, DType::kF32, rounded_up, dtype, num_cols);
  kernels_.silu_mul(scratch, rounded_up, y, dtype, num_cols);
}

}  // namespace stoker::cpu
