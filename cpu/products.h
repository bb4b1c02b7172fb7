// Runs matrix products on the Team: decode rows by the tile16 kernels, prefill rows by oneDNN. Any
// number of products share one fork and join.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "core/base/team.h"
#include "core/interface/backend.h"
#include "cpu/kernels.h"
#include "cpu/memory.h"
#include "cpu/onednn_matmul.h"

namespace stoker::cpu {

// y[y_rows[i]] = staged[x_begin + i] . W^T, or with `up` silu(gate) * up.
struct Product {
  Purpose purpose = Purpose::kDecode;
  TileMatrix w{}, up{};  // up.payload null: none
  // Decode: indices of staged rows. Prefill: the rows follow one another from x_rows[0].
  const std::int32_t* x_rows = nullptr;
  int num_rows = 0;
  TensorView y;  // columns [0, w.rows) are written
  const std::int32_t* y_rows = nullptr;
};

// Not thread-safe: the driver thread owns it.
class Products {
 public:
  Products(Team& team, const Kernels& kernels, DType activations, Isa isa);

  // Type that prefill computes `format` in: BF16 where activations and weights are exact in it
  // (codes times a scale that is no power of two are rounded once) and the machine has it, else
  // F32.
  DType panel_dtype(QuantFormat format) const;
  // Makes prefill ready for matrices of `cols` inputs.
  Status prepare(std::int64_t cols, QuantFormat format);

  // One batch: begin(), then stage rows and add products in any order, then run().
  // All rows staged have `cols` columns; prefill rows are staged as `panel_dtype`.
  void begin(std::int64_t cols, DType panel_dtype);
  // Copies row `row` of `x` to where products find it; returns its index among its purpose's rows.
  std::int32_t stage(Purpose purpose, const TensorView& x, std::int64_t row);
  void add(const Product& product);
  void run();

  // A list of indices that lives until the next begin().
  std::int32_t* indices(std::size_t count);

 private:
  struct StagedRow {
    const void* src;
    DType dtype;
  };
  struct Piece {
    std::int32_t product;
    std::int32_t tile_begin, tile_end;
  };
  struct Worker {
    Scratch panel, up_panel, tiles;
  };

  void copy_rows();
  void cut(std::int32_t index);
  void run_decode(const Product& product, const Piece& piece);
  void run_prefill(const Product& product, const Piece& piece, int worker);
  void finish_row(const Product& product, const float* gate, const float* up, int num_cols, void* y,
                  std::byte* scratch) const;

  Team& team_;
  const Kernels& kernels_;
  DType activations_;
  PanelMatmul matmul_;
  std::vector<Worker> workers_;

  std::int64_t cols_ = 0, decode_stride_ = 0;
  DType panel_dtype_ = DType::kF32;
  std::vector<StagedRow> decode_rows_, prefill_rows_;
  Scratch decode_x_, prefill_x_;
  float* decode_base_ = nullptr;       // [decode rows, decode_stride]
  std::byte* prefill_base_ = nullptr;  // [prefill rows + kMostMatmulRows, cols]
  std::vector<Product> products_;
  std::vector<Piece> pieces_;
  std::vector<std::vector<std::int32_t>> index_lists_;
  std::size_t num_lists_ = 0;
};

}  // namespace stoker::cpu
