// What the tests of the CUDA backend share: a backend or a reason to skip, random data, steps, and
// the way of values to the device and back. Written against Backend alone.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "gpu/factory.h"
#include "quant/kv_rows.h"
#include "quant/tile16.h"

namespace stoker {

// Values [rows, cols] on the host.
struct Values {
  std::int64_t rows = 0, cols = 0;
  std::vector<float> data;

  Values() = default;
  Values(std::int64_t num_rows, std::int64_t num_cols)
      : rows(num_rows), cols(num_cols), data(static_cast<std::size_t>(num_rows * num_cols)) {}

  float& at(std::int64_t row, std::int64_t col) {
    return data[static_cast<std::size_t>(row * cols + col)];
  }
  float at(std::int64_t row, std::int64_t col) const {
    return data[static_cast<std::size_t>(row * cols + col)];
  }
  const float* row(std::int64_t index) const { return data.data() + index * cols; }
};

inline float as_stored(DType dtype, float value) {
  return dtype == DType::kBf16 ? round_to_bf16(value) : value;
}

// A row-major weight of any format with its memory.
struct HostMatrix {
  std::vector<std::byte> payload;
  std::vector<float> scales;
  QuantView view;
};

class Random {
 public:
  explicit Random(std::uint32_t seed) : engine_(seed) {}

  float uniform(float low, float high) {
    return std::uniform_real_distribution<float>(low, high)(engine_);
  }
  int below(int end) { return std::uniform_int_distribution<int>(0, end - 1)(engine_); }

  // As they come back from memory of that type.
  Values values(std::int64_t rows, std::int64_t cols, DType stored = DType::kF32,
                float range = 1.0f) {
    Values values(rows, cols);
    for (float& value : values.data) value = as_stored(stored, uniform(-range, range));
    return values;
  }

  HostMatrix matrix(QuantFormat format, std::int64_t rows, std::int64_t cols) {
    HostMatrix m;
    m.view.spec.format = format;
    m.view.rows = rows;
    m.view.cols = cols;
    const std::int64_t element = m.view.spec.element_bits() / 8;
    m.payload.resize(static_cast<std::size_t>(rows * cols * element));
    for (std::int64_t i = 0; i < rows * cols; ++i) {
      const std::uint32_t bits = element_bits(format);
      std::memcpy(m.payload.data() + i * element, &bits, static_cast<std::size_t>(element));
    }
    if (m.view.spec.has_scales()) {
      m.scales.resize(static_cast<std::size_t>((rows + 127) / 128 * ((cols + 127) / 128)));
      for (float& scale : m.scales) scale = uniform(0.001f, 0.01f);
      m.view.scales = reinterpret_cast<const std::byte*>(m.scales.data());
    }
    m.view.payload = m.payload.data();
    return m;
  }

 private:
  std::uint32_t element_bits(QuantFormat format) {
    switch (format) {
      case QuantFormat::kF32:  // now and then a subnormal
        return f32_to_bits(below(50) == 0 ? uniform(-1e-39f, 1e-39f) : uniform(-1.0f, 1.0f));
      case QuantFormat::kBf16:
        return to_bf16(uniform(-1.0f, 1.0f)).bits;
      case QuantFormat::kF16:  // any sign and mantissa, below 2
        return static_cast<std::uint32_t>(below(2) << 15 | below(0x4000));
      case QuantFormat::kF8E4m3B128: {  // any code but NaN
        const int code = below(256);
        return static_cast<std::uint32_t>((code & 0x7f) == 0x7f ? 0 : code);
      }
      case QuantFormat::kInt8:
      case QuantFormat::kInt4:
        CHECK(false, "integers have no row-major form");
    }
    return 0;
  }

  std::mt19937 engine_;
};

// A step of sequences with pages of their own; owns what its view points to.
struct TestStep {
  // One sequence per entry: its rows stand at the last `rows` of `length` positions.
  struct Part {
    int length, rows;
    Purpose purpose = Purpose::kDecode;
  };

  explicit TestStep(const std::vector<Part>& parts, int vocab = 1) {
    int num_pages = 0;
    for (const Part& part : parts) num_pages += (part.length + kPageTokens - 1) / kPageTokens;
    total_pages = num_pages;
    for (const Part& part : parts) {
      const int row_begin = static_cast<int>(tokens.size());
      ranges.push_back({row_begin, part.rows, static_cast<int>(pages.size()), part.purpose});
      for (int i = 0; i < part.rows; ++i) {
        positions.push_back(part.length - part.rows + i);
        tokens.push_back(static_cast<TokenId>(tokens.size() * 7) % vocab);
      }
      logit_rows.push_back(row_begin + part.rows - 1);
      std::vector<std::int32_t> table;  // pages from the end, so that order shows
      for (int i = 0; i < (part.length + kPageTokens - 1) / kPageTokens; ++i) {
        table.push_back(--num_pages);
      }
      pages.push_back(std::move(table));
    }
    for (const auto& table : pages) sequences.push_back({table, table});
    view = {tokens, positions, ranges, sequences, logit_rows};
  }
  TestStep(const TestStep&) = delete;
  TestStep& operator=(const TestStep&) = delete;

  int num_rows() const { return view.num_rows(); }
  int sequence_of(int row) const {
    for (const RowRange& range : ranges) {
      if (row >= range.row_begin && row < range.row_begin + range.num_rows) return range.sequence;
    }
    return -1;
  }
  std::int64_t cache_row(int sequence, int position) const {
    return std::int64_t{pages[static_cast<std::size_t>(sequence)]
                             [static_cast<std::size_t>(position / kPageTokens)]} *
               kPageTokens +
           position % kPageTokens;
  }
  std::int64_t cache_rows() const { return std::int64_t{total_pages} * kPageTokens; }

  std::vector<TokenId> tokens;
  std::vector<std::int32_t> positions, logit_rows;
  std::vector<RowRange> ranges;
  std::vector<std::vector<std::int32_t>> pages;
  std::vector<SequencePages> sequences;
  int total_pages = 0;
  StepView view;
};

// What a backend computes and caches with.
struct CudaTypes {
  DType activations;
  KvFormat kv;
};
inline constexpr CudaTypes kPlainTypes[] = {{DType::kBf16, KvFormat::kBf16},
                                            {DType::kF32, KvFormat::kF32}};
// For what depends on the form of a cache.
inline constexpr CudaTypes kCacheTypes[] = {{DType::kBf16, KvFormat::kBf16},
                                            {DType::kF32, KvFormat::kF32},
                                            {DType::kBf16, KvFormat::kFp8},
                                            {DType::kF32, KvFormat::kFp8}};

class CudaTest : public testing::TestWithParam<CudaTypes> {
 protected:
  void SetUp() override {
    if (list_gpus().empty()) GTEST_SKIP() << "no CUDA device: " << cuda_support();
    backend = make_backend(GetParam());
    activation = GetParam().activations;
  }

  static CudaBackendOptions options_for(const CudaTypes& types) {
    CudaBackendOptions options;
    options.activations = types.activations;
    options.kv_format = types.kv;
    options.staging_bytes = 4096;  // small, so that it wraps
    return options;
  }
  static std::unique_ptr<Backend> make_backend(const CudaBackendOptions& options) {
    auto made = make_cuda_backend(options);
    CHECK(made.ok(), "{}", made.error().message());
    return std::move(made).value();
  }
  static std::unique_ptr<Backend> make_backend(const CudaTypes& types) {
    return make_backend(options_for(types));
  }
  bool fp8_cache() const { return GetParam().kv == KvFormat::kFp8; }

  // Values as they come back from a cache of that form.
  static Values as_cached(KvFormat kv, const KvRow& row, const Values& values) {
    Values kept = values;
    std::vector<std::byte> bytes(static_cast<std::size_t>(quant::kv_row_layout(row).bytes));
    for (std::int64_t r = 0; r < values.rows; ++r) {
      if (kv == KvFormat::kFp8) {
        quant::encode_kv_row(row, values.row(r), bytes.data());
        quant::decode_kv_row(row, bytes.data(), &kept.at(r, 0));
      } else if (kv == KvFormat::kBf16) {
        for (std::int64_t c = 0; c < values.cols; ++c) {
          kept.at(r, c) = round_to_bf16(values.at(r, c));
        }
      }
    }
    return kept;
  }
  // A cache of `to` that holds `values`; its tensor must outlive what is done with the layer.
  Tensor upload_cache(Backend& to, const KvRow& row, const Values& values) {
    const KvMatrix matrix = kv_matrix(to.kv_format(), row);
    auto tensor = to.allocate(matrix.dtype, values.rows, matrix.cols);
    CHECK(tensor.ok(), "{}", tensor.error().message());
    std::vector<std::byte> bytes(static_cast<std::size_t>(values.rows * matrix.row_bytes()));
    for (std::int64_t r = 0; r < values.rows; ++r) {
      std::byte* const at = bytes.data() + r * matrix.row_bytes();
      if (to.kv_format() == KvFormat::kFp8) quant::encode_kv_row(row, values.row(r), at);
      for (std::int64_t c = 0; c < values.cols && to.kv_format() != KvFormat::kFp8; ++c) {
        const float value = values.at(r, c);
        const bf16 rounded = to_bf16(value);
        std::memcpy(at + c * dtype_bytes(matrix.dtype),
                    matrix.dtype == DType::kF32 ? static_cast<const void*>(&value) : &rounded,
                    static_cast<std::size_t>(dtype_bytes(matrix.dtype)));
      }
    }
    to.copy_in(tensor->view(), bytes.data());
    EXPECT_TRUE(to.finish().ok());
    return std::move(tensor).value();
  }

  Tensor upload(const Values& values, DType dtype) {
    auto tensor = backend->allocate(dtype, values.rows, values.cols);
    CHECK(tensor.ok(), "{}", tensor.error().message());
    if (dtype == DType::kF32) {
      backend->copy_in(tensor->view(), values.data.data());
    } else {
      std::vector<bf16> rounded;
      for (const float value : values.data) rounded.push_back(to_bf16(value));
      backend->copy_in(tensor->view(), rounded.data());
      expect_fine();
    }
    expect_fine();
    return std::move(tensor).value();
  }

  Tensor empty(DType dtype, std::int64_t rows, std::int64_t cols) {
    auto tensor = backend->allocate(dtype, rows, cols);
    CHECK(tensor.ok(), "{}", tensor.error().message());
    return std::move(tensor).value();
  }

  Values download(const TensorView& view) {
    Values values(view.rows, view.cols);
    if (view.dtype == DType::kF32) {
      backend->copy_out(values.data.data(), view);
      expect_fine();
      return values;
    }
    std::vector<bf16> raw(values.data.size());
    backend->copy_out(raw.data(), view);
    expect_fine();
    for (std::size_t i = 0; i < raw.size(); ++i) values.data[i] = to_f32(raw[i]);
    return values;
  }

  std::vector<std::int32_t> download_ints(const TensorView& view) {
    std::vector<std::int32_t> values(static_cast<std::size_t>(view.rows * view.cols));
    backend->copy_out(values.data(), view);
    expect_fine();
    return values;
  }

  WeightPtr adopt(const HostMatrix& matrix) {
    auto weight = backend->adopt(matrix.view);
    CHECK(weight.ok(), "{}", weight.error().message());
    return std::move(weight).value();
  }

  void begin(const TestStep& step) {
    const Status status = backend->begin_step(step.view);
    CHECK(status.ok(), "{}", status.error().message());
  }

  void expect_fine() {
    const Status status = backend->finish();
    EXPECT_TRUE(status.ok()) << status.error().message();
  }

  // Relative to the larger of 1 and the expected value; BF16 stores 8 bits.
  double tolerance() const { return activation == DType::kBf16 ? 1.0 / 128 : 2e-5; }
  void expect_near(double expected, float actual, const std::string& where) const {
    EXPECT_NEAR(expected, actual, tolerance() * std::max(1.0, std::abs(expected))) << where;
  }

  void expect_same_bits(float expected, float actual, const std::string& where) const {
    EXPECT_EQ(f32_to_bits(expected), f32_to_bits(actual))
        << where << ": " << expected << " and " << actual;
  }

  std::unique_ptr<Backend> backend;
  DType activation = DType::kF32;
};

inline std::string types_of_test(const testing::TestParamInfo<CudaTypes>& info) {
  return std::string(dtype_name(info.param.activations))
      .append("_")
      .append(kv_format_name(info.param.kv));
}

}  // namespace stoker
