// The reference arithmetic of an FP8 cache: the reference backend, whose caches hold in F32 what is
// left of a row after it was kept as FP8 (quant/kv_rows.h).
#pragma once

#include <algorithm>
#include <vector>

#include "cpu/reference_backend.h"
#include "quant/kv_rows.h"

namespace stoker::test {

class Fp8Reference final : public ReferenceBackend {
 public:
  void append_latent(const StepView& step, TensorView x, KvLayer dst) override {
    std::vector<float> values = copy_of(x);
    keep(dst.row, values);
    ReferenceBackend::append_latent(step, view_of(values, x), dst);
  }
  void append_index_key(const StepView& step, TensorView x, KvLayer dst) override {
    std::vector<float> values = copy_of(x);
    const auto n = static_cast<std::size_t>(x.cols);
    for (std::size_t at = 0; at < values.size(); at += n) {
      quant::rotate_index_vector(&values[at], static_cast<int>(n));
    }
    keep(dst.row, values);
    ReferenceBackend::append_index_key(step, view_of(values, x), dst);
  }
  void select(const StepView& step, const SelectParams& params) override {
    std::vector<float> queries = copy_of(params.queries);
    const auto n = static_cast<std::size_t>(params.dims.head_dim);
    for (std::size_t at = 0; at < queries.size(); at += n) {
      quant::round_index_query(&queries[at], static_cast<int>(n));
    }
    SelectParams rounded = params;
    rounded.queries = view_of(queries, params.queries);
    ReferenceBackend::select(step, rounded);
  }

 private:
  static std::vector<float> copy_of(const TensorView& x) {
    std::vector<float> values;
    for (std::int64_t r = 0; r < x.rows; ++r) {
      values.insert(values.end(), x.row<float>(r), x.row<float>(r) + x.cols);
    }
    return values;
  }
  static TensorView view_of(std::vector<float>& values, const TensorView& like) {
    return make_view(values.data(), DType::kF32, like.rows, like.cols);
  }
  static void keep(const KvRow& row, std::vector<float>& values) {
    const auto n = static_cast<std::size_t>(row.num_values());
    CHECK(n > 0 && values.size() % n == 0, "{} values in rows of {}", values.size(), n);
    std::vector<std::byte> bytes(static_cast<std::size_t>(quant::kv_row_layout(row).bytes));
    for (std::size_t at = 0; at < values.size(); at += n) {
      quant::encode_kv_row(row, &values[at], bytes.data());
      quant::decode_kv_row(row, bytes.data(), &values[at]);
    }
  }
};

}  // namespace stoker::test
