// Weights in the forms the CPU backend computes with.
#pragma once

#include <cstdint>
#include <vector>

#include "core/base/team.h"
#include "core/interface/backend.h"
#include "cpu/kernels.h"
#include "cpu/memory.h"

namespace stoker::cpu {

// A linear in tile16 layout.
class TiledWeight final : public BackendWeight {
 public:
  // FP8 codes that are NaN are an error.
  static Result<std::unique_ptr<TiledWeight>> create(const QuantView& host, Team& team);

  std::int64_t rows() const override { return view_.rows; }
  std::int64_t cols() const override { return view_.cols; }
  std::int64_t bytes() const override { return static_cast<std::int64_t>(memory_.bytes()); }
  const TileMatrix& matrix() const { return matrix_; }

 private:
  Memory memory_;
  QuantView view_;
  TileMatrix matrix_;
};

// The embedding table, row-major as published.
class EmbeddingWeight final : public BackendWeight {
 public:
  static Result<std::unique_ptr<EmbeddingWeight>> create(const QuantView& host);

  std::int64_t rows() const override { return view_.rows; }
  std::int64_t cols() const override { return view_.cols; }
  std::int64_t bytes() const override { return static_cast<std::int64_t>(memory_.bytes()); }
  // Row `index`; `wide` takes [cols] where the format must be decoded.
  void read_row(const Kernels& kernels, std::int64_t index, DType dtype, void* out,
                float* wide) const;

 private:
  Memory memory_;
  QuantView view_;
};

// kv_b_proj per head, for absorbed attention: the key part transposed [latent, nope], so that
// q' = q_nope . Wk is a product like any other, and the value part [value, latent]. FP8 stays FP8
// where every head's parts are whole scale blocks (nope and value multiples of 128, as published);
// otherwise it is held as F32, which is four times as large and meant for small models.
class KvBWeight final : public BackendWeight {
 public:
  static Result<std::unique_ptr<KvBWeight>> create(const QuantView& host, const AttentionDims& dims,
                                                   Team& team);

  std::int64_t rows() const override { return rows_; }
  std::int64_t cols() const override { return cols_; }
  std::int64_t bytes() const override { return static_cast<std::int64_t>(memory_.bytes()); }
  const TileMatrix& key(int head) const { return keys_[head]; }
  const TileMatrix& value(int head) const { return values_[head]; }

 private:
  Memory memory_;
  std::int64_t rows_ = 0, cols_ = 0;
  std::vector<TileMatrix> keys_, values_;
};

}  // namespace stoker::cpu
