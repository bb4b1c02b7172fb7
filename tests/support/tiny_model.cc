#include "tests/support/tiny_model.h"

#include <algorithm>
#include <cmath>

#include "core/tensor/dtype.h"
#include "quant/fp8.h"
#include "storage/safetensors_writer.h"

namespace stoker::test {
namespace {

using storage::StoredType;
using storage::TensorDecl;

constexpr std::int64_t kBlock = 128;

void must(const Status& status) { CHECK(status.ok(), "{}", status.error().message()); }

// splitmix64, and from it numbers that need no libm, so that every machine draws the same.
class Random {
 public:
  explicit Random(std::uint64_t seed) : state_(seed) {}

  std::uint64_t bits() {
    state_ += 0x9e3779b97f4a7c15u;
    std::uint64_t z = state_;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
  }
  double uniform() { return static_cast<double>(bits() >> 11) * 0x1p-53; }
  // Bell-shaped, mean 0, variance 1: four uniform numbers, summed.
  double normal() {
    const double sum = uniform() + uniform() + uniform() + uniform();
    return (sum - 2.0) * 1.7320508075688772;
  }

 private:
  std::uint64_t state_;
};

std::uint64_t hash_of(std::string_view text) {
  std::uint64_t hash = 0xcbf29ce484222325u;  // FNV-1a
  for (const char c : text) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3u;
  return hash;
}

// The name that a tensor draws its numbers for.
std::string_view drawn_as(std::string_view name) {
  if (name.ends_with(".embed_tokens.weight")) return "model.embed_tokens.weight";
  if (name.ends_with(".shared_head.head.weight")) return "lm_head.weight";
  return name;
}

struct Distribution {
  double mean = 0.0, deviation = 1.0;
  bool heavy_tails = false;  // a few entries five times as large: block scales matter
};

Distribution distribution_of(const TensorSpec& spec, const TinyModelOptions& options) {
  const std::string_view name = drawn_as(spec.name);
  const double per_input = 1.0 / std::sqrt(static_cast<double>(spec.cols));
  if (spec.kind == TensorKind::kRouterBias) return {options.router_bias_shift, 0.15};
  if (name.ends_with("k_norm.bias")) return {0.0, 0.3};
  if (spec.kind == TensorKind::kNorm) return {1.0, 0.2};
  if (name == "model.embed_tokens.weight") return {0.0, 1.0};
  if (name == "lm_head.weight") return {0.0, 2.5 * per_input};
  if (name.ends_with("mlp.gate.weight")) return {0.0, 1.2 * per_input};
  if (spec.kind == TensorKind::kPlain) return {0.0, per_input};
  if (name.ends_with("down_proj.weight")) return {0.0, 1.6 * per_input, true};
  if (name.ends_with("q_b_proj.weight") || name.ends_with("kv_b_proj.weight")) {
    return {0.0, 1.5 * per_input, true};
  }
  return {0.0, per_input, true};
}

std::uint16_t to_f16_bits(float value) {
  const std::uint32_t bits = f32_to_bits(value);
  const auto sign = static_cast<std::uint16_t>(bits >> 16 & 0x8000u);
  const float magnitude = std::fabs(value);
  CHECK(magnitude < 65504.0f, "{}", value);
  if (magnitude < 0x1p-14f) {  // subnormal: a multiple of 2^-24
    return sign | static_cast<std::uint16_t>(std::nearbyint(magnitude * 0x1p24f));
  }
  const std::uint32_t rebiased = (bits & 0x7fffffffu) - (112u << 23);
  return sign | static_cast<std::uint16_t>((rebiased + 0xfffu + (rebiased >> 13 & 1u)) >> 13);
}

template <typename T>
std::vector<std::byte> bytes_of(const std::vector<T>& values) {
  const auto bytes = std::as_bytes(std::span(values));
  return {bytes.begin(), bytes.end()};
}

std::vector<std::byte> rounded(const std::vector<float>& values, QuantFormat format) {
  if (format == QuantFormat::kF32) return bytes_of(values);
  std::vector<std::uint16_t> halves(values.size());
  std::transform(values.begin(), values.end(), halves.begin(), [&](float value) {
    return format == QuantFormat::kF16 ? to_f16_bits(value) : to_bf16(value).bits;
  });
  return bytes_of(halves);
}

struct Fp8Tensor {
  std::vector<std::uint8_t> codes;
  std::vector<float> scales;
};

Fp8Tensor quantised(const std::vector<float>& values, const TensorSpec& spec, bool power_of_two) {
  const std::int64_t block_cols = (spec.cols + kBlock - 1) / kBlock;
  const std::int64_t block_rows = (spec.rows + kBlock - 1) / kBlock;
  Fp8Tensor out;
  out.codes.resize(values.size());
  for (std::int64_t block = 0; block < block_rows * block_cols; ++block) {
    const std::int64_t row = block / block_cols * kBlock, col = block % block_cols * kBlock;
    const std::int64_t row_end = std::min(row + kBlock, spec.rows);
    const std::int64_t col_end = std::min(col + kBlock, spec.cols);
    float largest = 1e-4f;
    for (std::int64_t r = row; r < row_end; ++r) {
      for (std::int64_t c = col; c < col_end; ++c) {
        largest = std::max(largest, std::fabs(values[r * spec.cols + c]));
      }
    }
    float scale = largest / 448.0f;
    if (power_of_two) {
      int exponent = 0;
      const float mantissa = std::frexp(scale, &exponent);  // in [0.5, 1)
      scale = std::ldexp(1.0f, mantissa == 0.5f ? exponent - 1 : exponent);
    }
    out.scales.push_back(scale);
    for (std::int64_t r = row; r < row_end; ++r) {
      for (std::int64_t c = col; c < col_end; ++c) {
        out.codes[r * spec.cols + c] = quant::f32_to_fp8(values[r * spec.cols + c] / scale);
      }
    }
  }
  return out;
}

StoredType stored_type(QuantFormat format) {
  switch (format) {
    case QuantFormat::kF32:
      return StoredType::kF32;
    case QuantFormat::kF16:
      return StoredType::kF16;
    case QuantFormat::kBf16:
      return StoredType::kBf16;
    case QuantFormat::kF8E4m3B128:
      return StoredType::kF8E4m3;
    case QuantFormat::kInt8:
    case QuantFormat::kInt4:
      break;  // not published
  }
  return StoredType::kF32;
}

bool is_stored(const TensorSpec& spec, const TinyModelOptions& options) {
  if (spec.category != TensorCategory::kMtp) return !spec.optional;
  return options.store_drafts && (options.store_draft_copies || !spec.optional);
}

std::vector<TensorDecl> declarations(const std::vector<TensorSpec>& specs) {
  std::vector<TensorDecl> decls;
  for (const TensorSpec& spec : specs) {
    TensorDecl decl{spec.name, stored_type(spec.format), {spec.rows, spec.cols}};
    if (spec.is_vector()) decl.shape = {spec.cols};
    decls.push_back(decl);
    if (spec.format == QuantFormat::kF8E4m3B128) {
      decls.push_back({scale_name(spec.name),
                       StoredType::kF32,
                       {(spec.rows + kBlock - 1) / kBlock, (spec.cols + kBlock - 1) / kBlock}});
    }
  }
  return decls;
}

}  // namespace

std::vector<float> tiny_tensor(const TensorSpec& spec, const TinyModelOptions& options) {
  const Distribution distribution = distribution_of(spec, options);
  Random random(hash_of(drawn_as(spec.name)) ^ options.seed * 0x9e3779b97f4a7c15u);
  std::vector<float> values(static_cast<std::size_t>(spec.elements()));
  for (float& value : values) {
    double drawn = distribution.mean + distribution.deviation * random.normal();
    if (distribution.heavy_tails && random.uniform() < 0.002) drawn *= 5.0;
    value = static_cast<float>(drawn);
  }
  return values;
}

ModelConfig write_tiny_model(const std::filesystem::path& dir, const TinyModelOptions& options) {
  Result<ModelConfig> config = ModelConfig::parse(options.config);
  CHECK(config.ok(), "{}", config.error().message());
  std::vector<TensorSpec> specs = tensor_table(*config);
  std::erase_if(specs, [&](const TensorSpec& spec) { return !is_stored(spec, options); });
  auto writer = storage::CheckpointWriter::create(dir, declarations(specs), options.shards);
  CHECK(writer.ok(), "{}", writer.error().message());
  std::size_t next = 0;
  for (const TensorSpec& spec : specs) {
    const std::vector<float> values = tiny_tensor(spec, options);
    if (spec.format == QuantFormat::kF8E4m3B128) {
      const Fp8Tensor fp8 = quantised(values, spec, options.power_of_two_scales);
      must(writer->append(next++, std::as_bytes(std::span(fp8.codes))));
      must(writer->append(next++, std::as_bytes(std::span(fp8.scales))));
    } else {
      must(writer->append(next++, rounded(values, spec.format)));
    }
  }
  must(writer->finish());
  must(storage::write_text_file(dir / "config.json", options.config));
  must(storage::write_text_file(dir / "generation_config.json",
                                R"({"bos_token_id": 0, "eos_token_id": 1, "do_sample": true,
 "temperature": 1.0, "top_p": 0.95})"));
  return std::move(config).value();
}

}  // namespace stoker::test
