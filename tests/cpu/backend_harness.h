// One small step's worth of data, run through any backend; for tests that compare backends or runs.
#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <random>
#include <string>
#include <vector>

#include "core/base/team.h"
#include "core/interface/backend.h"
#include "cpu/factory.h"
#include "quant/expert_block.h"
#include "quant/kv_rows.h"
#include "tests/cpu/random_matrix.h"

namespace stoker {

// Values that BF16 holds exactly, so that every backend starts from the same numbers.
inline std::vector<float> bf16_floats(std::int64_t count, std::mt19937& random,
                                      float deviation = 1.0f) {
  std::vector<float> values = random_floats(count, random, deviation);
  for (float& value : values) value = round_to_bf16(value);
  return values;
}

inline Tensor make_tensor(Backend& backend, DType dtype, std::int64_t rows, std::int64_t cols,
                          const std::vector<float>& values = {}) {
  Tensor tensor = backend.allocate(dtype, rows, cols).value();
  for (std::size_t i = 0; i < values.size(); ++i) {
    if (dtype == DType::kF32) {
      static_cast<float*>(tensor.view().data)[i] = values[i];
    } else {
      static_cast<bf16*>(tensor.view().data)[i] = to_bf16(values[i]);
    }
  }
  return tensor;
}

inline std::vector<float> floats_of(const TensorView& view) {
  std::vector<float> values;
  for (std::int64_t r = 0; r < view.rows; ++r) {
    for (std::int64_t c = 0; c < view.cols; ++c) {
      values.push_back(view.dtype == DType::kF32 ? view.row<float>(r)[c]
                                                 : to_f32(view.row<bf16>(r)[c]));
    }
  }
  return values;
}

// |a - b| <= tolerance * largest |b|.
inline void expect_near(const std::vector<float>& a, const std::vector<float>& b, float tolerance,
                        const std::string& what) {
  ASSERT_EQ(a.size(), b.size()) << what;
  float largest = 1e-6f;
  for (const float value : b) largest = std::max(largest, std::fabs(value));
  for (std::size_t i = 0; i < a.size(); ++i) {
    ASSERT_NEAR(a[i], b[i], tolerance * largest) << what << " element " << i;
  }
}

// A step of one sequence whose rows come last in a context of `length` positions.
class TestStep {
 public:
  TestStep(int num_rows, int length, Purpose purpose) : TestStep(num_rows, length, 0, purpose) {}
  // The first `num_decode` rows are decode rows, the rest `rest`.
  TestStep(int num_rows, int length, int num_decode, Purpose rest) {
    for (int t = 0; t < num_rows; ++t) {
      tokens.push_back(t);
      positions.push_back(length - num_rows + t);
      logit_rows.push_back(t);
    }
    const int num_pages = (length + kPageTokens - 1) / kPageTokens;
    for (int page = 0; page < num_pages; ++page) pages.push_back(num_pages - 1 - page);
    if (num_decode > 0) ranges.push_back({0, num_decode, 0, Purpose::kDecode});
    if (num_rows > num_decode) ranges.push_back({num_decode, num_rows - num_decode, 0, rest});
    sequences.push_back({pages, pages});
  }
  TestStep(const TestStep&) = delete;

  StepView view() const { return {tokens, positions, ranges, sequences, logit_rows}; }
  std::int64_t cache_row(int position) const {
    return std::int64_t{pages[position / kPageTokens]} * kPageTokens + position % kPageTokens;
  }
  std::int64_t cache_rows() const { return static_cast<std::int64_t>(pages.size()) * kPageTokens; }

  std::vector<TokenId> tokens;
  std::vector<std::int32_t> positions, logit_rows, pages;
  std::vector<RowRange> ranges;
  std::vector<SequencePages> sequences;
};

// Routed experts in block form, integers quantised from BF16.
class TestExperts {
 public:
  TestExperts(int num_experts, std::int64_t hidden, std::int64_t inter, const QuantSpec& spec,
              std::mt19937& random)
      : blocks_(hidden, inter, spec) {
    const QuantSpec format = spec.is_integer() ? QuantSpec{QuantFormat::kBf16} : spec;
    for (int e = 0; e < num_experts; ++e) {
      const RandomMatrix gate(inter, hidden, format, random), up(inter, hidden, format, random),
          down(hidden, inter, format, random);
      bytes_.emplace_back(blocks_.expert_bytes());
      for (int b = 0; b < blocks_.num_blocks(); ++b) {
        blocks_.write(b, gate.row_major(), up.row_major(), down.row_major(),
                      bytes_.back().data() + blocks_.block(b).offset);
      }
    }
  }

  std::vector<ExpertPart> parts(const std::vector<ExpertUse>& uses) const {
    std::vector<ExpertPart> parts;
    for (int b = 0; b < blocks_.num_blocks(); ++b) {
      for (int u = 0; u < static_cast<int>(uses.size()); ++u) {
        parts.push_back(blocks_.part(b, bytes_[uses[u].expert].data() + blocks_.block(b).offset));
        parts.back().use = u;
      }
    }
    return parts;
  }

 private:
  quant::ExpertBlocks blocks_;
  std::vector<std::vector<std::byte>> bytes_;
};

inline KvFormat kv_format_like(DType activations) {
  return activations == DType::kF32 ? KvFormat::kF32 : KvFormat::kBf16;
}

inline std::unique_ptr<Backend> cpu_backend(Team& team, Isa isa, DType activations, KvFormat kv) {
  return make_cpu_backend({.activations = activations, .kv_format = kv, .isa = isa, .team = &team})
      .value();
}
inline std::unique_ptr<Backend> cpu_backend(Team& team, Isa isa, DType activations) {
  return cpu_backend(team, isa, activations, kv_format_like(activations));
}

// A cache in the backend's form, empty or with `values` [num_rows, row.num_values()] kept in it.
inline Tensor make_cache(Backend& backend, std::int64_t num_rows, const KvRow& row,
                         const std::vector<float>& values = {}) {
  const KvMatrix matrix = kv_matrix(backend.kv_format(), row);
  if (matrix.dtype != DType::kU8) {
    return make_tensor(backend, matrix.dtype, num_rows, matrix.cols, values);
  }
  Tensor cache = backend.allocate(matrix.dtype, num_rows, matrix.cols).value();
  const auto num_values = static_cast<std::size_t>(row.num_values());
  for (std::size_t i = 0; i < values.size() / num_values; ++i) {
    quant::encode_kv_row(row, &values[i * num_values],
                         cache.view().row<std::byte>(static_cast<std::int64_t>(i)));
  }
  return cache;
}

}  // namespace stoker
