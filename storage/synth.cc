#include "storage/synth.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <nlohmann/json.hpp>
#include <vector>

#include "core/model/json_fields.h"
#include "core/model/tensor_table.h"
#include "quant/expert_block.h"
#include "quant/fp8.h"
#include "quant/tile16.h"
#include "storage/checksum.h"

namespace stoker::storage {
namespace {

// Random bytes come from pools that are drawn once: copying stretches of them keeps up with any
// drive, drawing every byte does not.
constexpr std::int64_t kPoolBytes = 16 << 20;
constexpr std::int64_t kStretch = 32 << 10;  // copied at once, from a place of its own
constexpr std::int64_t kPlaceAlign = 64;

std::uint64_t mixed(std::uint64_t z) {  // splitmix64
  z += 0x9e3779b97f4a7c15u;
  z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
  z = (z ^ z >> 27) * 0x94d049bb133111ebu;
  return z ^ z >> 31;
}

// In [-1, 1).
float unit(std::uint64_t bits) { return static_cast<float>(bits >> 40) * 0x1p-23f - 1.0f; }

template <typename T>
class Pool {
 public:
  Pool() = default;
  template <typename Draw>
  Pool(std::int64_t bytes, std::uint64_t seed, Draw draw)
      : values_(static_cast<std::size_t>(bytes) / sizeof(T)) {
    for (std::size_t i = 0; i < values_.size(); ++i) values_[i] = draw(mixed(seed + i));
  }

  // `bytes` from `key`'s place on; at most kStretch.
  const std::byte* at(std::uint64_t key, std::int64_t bytes) const {
    const auto room =
        static_cast<std::uint64_t>(std::ssize(values_) * std::int64_t{sizeof(T)} - bytes);
    const std::uint64_t place = mixed(key) % (room / kPlaceAlign + 1) * kPlaceAlign;
    return reinterpret_cast<const std::byte*>(values_.data()) + place;
  }
  void copy(std::uint64_t key, std::byte* dst, std::int64_t bytes) const {
    for (std::int64_t done = 0; done < bytes; done += kStretch) {
      const std::int64_t piece = std::min(kStretch, bytes - done);
      std::memcpy(dst + done, at(key + static_cast<std::uint64_t>(done), piece),
                  static_cast<std::size_t>(piece));
    }
  }

 private:
  std::vector<T> values_;
};

// Codes of a format, none of them invalid, and their root mean square.
std::uint8_t code_of(QuantFormat format, std::uint64_t bits) {
  const auto byte = static_cast<std::uint8_t>(bits >> 56);
  switch (format) {
    case QuantFormat::kF8E4m3B128:  // magnitudes 0.5 to 7.5
      return static_cast<std::uint8_t>((byte & 0x80) | (0x30 + (byte & 0x1f)));
    case QuantFormat::kInt8:
      return byte == 0x80 ? 1 : byte;
    case QuantFormat::kInt4: {  // no nibble is -8
      const auto low = static_cast<std::uint8_t>((byte & 0x0f) == 0x08 ? 0x01 : byte & 0x0f);
      const auto high = static_cast<std::uint8_t>((byte & 0xf0) == 0x80 ? 0x10 : byte & 0xf0);
      return low | high;
    }
    default:
      break;
  }
  CHECK(false, "no codes of {}", quant_format_name(format));
  return 0;
}
double code_rms(QuantFormat format) {
  return format == QuantFormat::kF8E4m3B128 ? 3.6 : format == QuantFormat::kInt8 ? 73.5 : 4.3;
}

std::uint16_t f16_bits(float value) {  // of values that are normal in F16, or nearly zero
  const std::uint32_t bits = f32_to_bits(value);
  const auto sign = static_cast<std::uint16_t>(bits >> 16 & 0x8000u);
  if ((bits & 0x7fffffffu) < 0x38800000u) return sign;
  return sign | static_cast<std::uint16_t>(((bits & 0x7fffffffu) - (112u << 23)) >> 13);
}

// Zero where the layout pads rows and columns.
void zero_padding(const QuantView& view) {
  const quant::Tile16 tile = quant::tile16_of(view);
  auto* const payload = const_cast<std::byte*>(view.payload);
  const int tail_bits =
      static_cast<int>(view.cols % tile.cols_per_turn()) * view.spec.element_bits();
  const std::int64_t used_turns = (view.cols + tile.cols_per_turn() - 1) / tile.cols_per_turn();
  const std::int64_t padded_rows = tile.num_tiles() * quant::kTileRows;
  if (padded_rows == view.rows && tail_bits == 0 && used_turns == tile.num_turns()) return;
  for (std::int64_t row = 0; row < padded_rows; ++row) {
    for (std::int64_t turn = row < view.rows ? view.cols / tile.cols_per_turn() : 0;
         turn < tile.num_turns(); ++turn) {
      std::byte* const at = payload + tile.dword_offset(row, turn * tile.cols_per_turn());
      std::uint32_t dword = 0;
      if (row < view.rows && turn < used_turns) {
        std::memcpy(&dword, at, 4);
        dword &= (std::uint32_t{1} << tail_bits) - 1;
      }
      std::memcpy(at, &dword, 4);
    }
  }
}

// What a dense tensor's values are like.
struct Distribution {
  double mean = 0.0, deviation = 1.0;
};
Distribution distribution_of(const TensorSpec& spec) {
  const double per_input = 1.0 / std::sqrt(static_cast<double>(spec.cols));
  if (spec.kind == TensorKind::kRouterBias) return {0.0, 0.1};
  if (spec.name.ends_with(".bias")) return {0.0, 0.2};
  if (spec.kind == TensorKind::kNorm) return {1.0, 0.2};
  if (spec.category == TensorCategory::kEmbedding) return {0.0, 1.0};
  if (spec.category == TensorCategory::kHead) return {0.0, 2.5 * per_input};
  return {0.0, per_input};
}

class SynthContent final : public StoreContent {
 public:
  SynthContent(const ModelConfig& config, const SynthOptions& options)
      : options_(options),
        blocks_(config.hidden_size, config.moe_intermediate_size, options.experts) {
    const QuantFormat format = options.experts.format;
    const auto seed = [&](std::uint64_t what) { return mixed(options.seed * 16 + what); };
    codes_ = {kPoolBytes, seed(0), [&](std::uint64_t bits) { return code_of(format, bits); }};
    fp8_ = {kPoolBytes, seed(1),
            [](std::uint64_t bits) { return code_of(QuantFormat::kF8E4m3B128, bits); }};
    // The sum of two uniform numbers, with variance 1.
    floats_ = {kPoolBytes, seed(2),
               [](std::uint64_t bits) { return (unit(bits) + unit(bits << 32)) * 1.2247449f; }};
    gate_up_scales_ = scales(config.hidden_size, 1.0, seed(3));
    down_scales_ = scales(config.moe_intermediate_size, 1.6, seed(4));
    for (TensorSpec& spec : tensor_table(config)) {
      if (spec.expert >= 0 || spec.optional) continue;
      const bool fp8 = spec.format == QuantFormat::kF8E4m3B128;
      tensors_.push_back({spec, false});
      if (fp8) tensors_.push_back({std::move(spec), true});
    }
  }

  std::vector<TensorDecl> declarations() const;
  Status expert(ExpertId id, std::span<std::byte> dst, ScratchBytes& scratch) override;
  Status dense(std::size_t index, std::int64_t offset, std::span<std::byte> dst,
               ScratchBytes& scratch) override;
  std::int64_t scratch_bytes() const override { return 0; }

 private:
  struct Tensor {
    TensorSpec spec;
    bool is_scale;
  };

  // Scales, as their bytes lie, around the one that gives weights of variance gain^2 / cols.
  Pool<std::uint16_t> scales(std::int64_t cols, double gain, std::uint64_t seed) const {
    const QuantSpec spec = options_.experts;
    const double base = gain / (std::sqrt(static_cast<double>(cols)) * code_rms(spec.format));
    const bool wide = spec.scale_bytes() == 4;
    std::uint64_t index = 0;
    return {kPoolBytes / 8, seed, [=](std::uint64_t bits) mutable {
              const bool low_half = wide && index++ % 2 == 0;  // of an F32: left zero
              const float factor = 1.0f + 0.25f * unit(bits);
              return low_half ? std::uint16_t{0} : to_bf16(static_cast<float>(base) * factor).bits;
            }};
  }
  std::uint64_t key(std::uint64_t what, std::uint64_t which) const {
    return mixed(mixed(options_.seed ^ what) ^ which);
  }

  const SynthOptions options_;
  const quant::ExpertBlocks blocks_;
  Pool<std::uint8_t> codes_, fp8_;
  Pool<float> floats_;
  Pool<std::uint16_t> gate_up_scales_, down_scales_;
  std::vector<Tensor> tensors_;
};

std::vector<TensorDecl> SynthContent::declarations() const {
  std::vector<TensorDecl> decls;
  for (const auto& [spec, is_scale] : tensors_) {
    if (is_scale) {
      decls.push_back({scale_name(spec.name),
                       StoredType::kF32,
                       {(spec.rows + 127) / 128, (spec.cols + 127) / 128}});
      continue;
    }
    const StoredType type = spec.format == QuantFormat::kF32    ? StoredType::kF32
                            : spec.format == QuantFormat::kF16  ? StoredType::kF16
                            : spec.format == QuantFormat::kBf16 ? StoredType::kBf16
                                                                : StoredType::kF8E4m3;
    decls.push_back({spec.name, type, {spec.rows, spec.cols}});
    if (spec.is_vector()) decls.back().shape = {spec.cols};
  }
  return decls;
}

Status SynthContent::expert(ExpertId id, std::span<std::byte> dst, ScratchBytes& /*scratch*/) {
  const std::uint64_t expert_key =
      key(static_cast<std::uint64_t>(id.layer) + 1, static_cast<std::uint64_t>(id.expert));
  for (int index = 0; index < blocks_.num_blocks(); ++index) {
    const quant::ExpertBlocks::Block block = blocks_.block(index);
    std::byte* const begin = dst.data() + block.offset;
    const ExpertPart part = blocks_.part(index, begin);
    const bool down = block.half == ExpertHalf::kDown;
    std::byte* end = begin;
    std::uint64_t matrix = 0;
    const auto fill = [&](const QuantView& view) {
      const quant::Tile16 tile = quant::tile16_of(view);
      const std::uint64_t matrix_key =
          mixed(expert_key ^ (static_cast<std::uint64_t>(index) * 2 + matrix++));
      auto* const payload = const_cast<std::byte*>(view.payload);
      codes_.copy(matrix_key, payload, tile.payload_bytes());
      zero_padding(view);
      auto* const scales = const_cast<std::byte*>(view.scales);
      (down ? down_scales_ : gate_up_scales_).copy(~matrix_key, scales, tile.scale_bytes());
      end = std::max(end, scales + tile.scale_bytes());
    };
    if (down) {
      fill(part.down);
    } else {
      fill(part.gate);
      // Between the two matrices' scales lies nothing but padding.
      const auto* const gate_end = end;
      fill(part.up);
      std::memset(const_cast<std::byte*>(gate_end), 0,
                  static_cast<std::size_t>(part.up.scales - gate_end));
    }
    std::memset(end, 0, static_cast<std::size_t>(begin + block.bytes - end));
  }
  return {};
}

Status SynthContent::dense(std::size_t index, std::int64_t offset, std::span<std::byte> dst,
                           ScratchBytes& /*scratch*/) {
  const auto& [spec, is_scale] = tensors_[index];
  const std::uint64_t tensor_key = key(0, index * 2 + (is_scale ? 1 : 0));
  if (!is_scale && spec.format == QuantFormat::kF8E4m3B128) {
    fp8_.copy(tensor_key + static_cast<std::uint64_t>(offset), dst.data(), std::ssize(dst));
    return {};
  }
  Distribution values = distribution_of(spec);
  QuantFormat format = spec.format;
  if (is_scale) {
    format = QuantFormat::kF32;
    values.mean = values.deviation / code_rms(QuantFormat::kF8E4m3B128);
    values.deviation = 0.1 * values.mean;
  }
  const auto mean = static_cast<float>(values.mean);
  const auto deviation = static_cast<float>(values.deviation);
  const std::int64_t width = QuantSpec{format}.element_bits() / 8;
  const std::int64_t count = std::ssize(dst) / width;
  constexpr std::int64_t kFloats = kStretch / std::int64_t{sizeof(float)};
  for (std::int64_t done = 0; done < count; done += kFloats) {
    const std::int64_t piece = std::min(kFloats, count - done);
    const auto* const drawn = reinterpret_cast<const float*>(
        floats_.at(tensor_key + static_cast<std::uint64_t>(offset + done * width),
                   piece * std::int64_t{sizeof(float)}));
    std::byte* const to = dst.data() + done * width;
    for (std::int64_t i = 0; i < piece; ++i) {
      const float value = mean + deviation * drawn[i];
      if (format == QuantFormat::kF32) {
        std::memcpy(to + i * 4, &value, 4);
      } else {
        const std::uint16_t bits =
            format == QuantFormat::kBf16 ? to_bf16(value).bits : f16_bits(value);
        std::memcpy(to + i * 2, &bits, 2);
      }
    }
  }
  return {};
}

}  // namespace

Result<std::string> slice_config(std::string_view config_json, const SynthOptions& options) {
  ASSIGN_OR_RETURN(const ModelConfig config, ModelConfig::parse(config_json));
  nlohmann::ordered_json json = nlohmann::ordered_json::parse(config_json, nullptr, false);
  CHECK(json.is_object(), "parsed before");
  const int dense_layers = std::min(config.first_k_dense_replace, 1);
  json["first_k_dense_replace"] = dense_layers;
  json["num_hidden_layers"] = dense_layers + options.moe_layers;
  json["num_nextn_predict_layers"] = 0;
  if (options.vocab_size) {
    const int vocab = *options.vocab_size;
    json["vocab_size"] = vocab;
    // Tokens that a smaller vocabulary lacks.
    if (config.bos_token_id >= vocab) json["bos_token_id"] = 0;
    if (std::any_of(config.eos_token_id.begin(), config.eos_token_id.end(),
                    [&](TokenId id) { return id >= vocab; })) {
      json["eos_token_id"] = std::min(1, vocab - 1);
    }
  }
  std::string text = json.dump(2) + "\n";
  RETURN_IF_ERROR(ModelConfig::parse(text), "the slice");
  return text;
}

Status synthesize(std::string_view config_json, const SynthOptions& options,
                  const std::filesystem::path& out, const ProgressFn& progress) {
  ASSIGN_OR_RETURN(const ModelConfig config, ModelConfig::parse(config_json));
  if (options.num_files < 1 || options.num_files > config.n_routed_experts) {
    return make_error(ErrorCode::kInvalidArgument,
                      "{} expert files are too many: a layer has {} experts, a file gets at least "
                      "one of each",
                      options.num_files, config.n_routed_experts);
  }
  SynthContent content(config, options);
  StorePlan plan;
  plan.source_model = fmt::format("random {}", config.model_type_name());
  const std::string seed = fmt::format("seed {}", options.seed);
  plan.source = hash128(seed);
  plan.options = fmt::format("{} experts in {} file{}, {}", quant_spec_name(options.experts),
                             options.num_files, options.num_files == 1 ? "" : "s", seed);
  plan.source_config = hash128(config_json);
  plan.copies.emplace_back("config.json", config_json);
  plan.dense = content.declarations();
  plan.num_files = options.num_files;
  plan.expert_specs.assign(config.layers().size(), options.experts);
  for (const LayerSpec& layer : config.layers()) {
    if (layer.ffn == FfnKind::kMoe) plan.layers.push_back(layer.index);
  }
  StoreWriteOptions write;
  write.verify = false;  // nothing is lost with it
  write.writing = progress;
  return write_store(out, config, plan, content, write);
}

}  // namespace stoker::storage
