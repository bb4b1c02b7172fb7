// Random weights in both layouts (integers in tile16 alone), for tests.
#pragma once

#include <cstring>
#include <random>
#include <vector>

#include "core/tensor/quant_view.h"
#include "quant/fp8.h"
#include "quant/tile16.h"

namespace stoker {

// Normal values, none of them zero.
inline std::vector<float> random_floats(std::int64_t count, std::mt19937& random,
                                        float deviation = 1.0f) {
  std::normal_distribution<float> normal(0.0f, deviation);
  std::vector<float> values(count);
  for (float& value : values) {
    do {
      value = normal(random);
    } while (value == 0.0f);
  }
  return values;
}

class RandomMatrix {
 public:
  RandomMatrix(std::int64_t rows, std::int64_t cols, QuantFormat format, std::mt19937& random)
      : RandomMatrix(rows, cols, QuantSpec{format}, random) {}
  RandomMatrix(std::int64_t rows, std::int64_t cols, const QuantSpec& spec, std::mt19937& random)
      : rows_(rows), cols_(cols), spec_(spec) {
    const quant::Tile16 tile{rows, cols, spec_};
    tile_payload_.resize(tile.payload_bytes());
    tile_scales_.resize(tile.scale_bytes());
    if (spec.is_integer()) {
      fill_integers(tile, random);
      return;
    }
    const std::int64_t element_bytes = spec_.element_bits() / 8;
    payload_.resize(rows * cols * element_bytes);
    for (std::int64_t i = 0; i < rows * cols; ++i) encode(i * element_bytes, random);
    if (spec_.has_scales()) {
      scales_.resize((rows + 127) / 128 * ((cols + 127) / 128));
      std::uniform_real_distribution<float> uniform(0.01f, 0.05f);
      for (float& scale : scales_) scale = uniform(random);
    }
    quant::relay_tile16(row_major(), 0, rows, tile_payload_.data(), tile_scales_.data());
  }

  QuantView row_major() const {
    return view(payload_, reinterpret_cast<const std::byte*>(scales_.data()),
                WeightLayout::kRowMajor);
  }
  QuantView tiled() const {
    return view(tile_payload_, tile_scales_.data(), WeightLayout::kTile16);
  }
  // Row-major where the format has such a form.
  QuantView definition() const { return spec_.is_integer() ? tiled() : row_major(); }
  // Element [row, col] as it counts in exact arithmetic.
  double at(std::int64_t row, std::int64_t col) const {
    return double{quant::element_at(definition(), row, col)} *
           quant::scale_at(definition(), row, col);
  }

 private:
  // Codes of every value and scales within the matrix, zeros without.
  void fill_integers(const quant::Tile16& tile, std::mt19937& random) {
    const int bits = spec_.element_bits(), most = spec_.max_code();
    std::uniform_int_distribution<int> code(-most, most);
    std::uniform_real_distribution<float> scale(0.01f, 0.05f);
    for (std::int64_t row = 0; row < rows_; ++row) {
      for (std::int64_t col = 0; col < cols_; ++col) {
        std::uint32_t dword = 0;
        std::byte* const at = tile_payload_.data() + tile.dword_offset(row, col);
        std::memcpy(&dword, at, 4);
        const auto element = static_cast<std::uint32_t>(code(random)) & ((1u << bits) - 1);
        dword |= element << col % tile.cols_per_turn() * bits;
        std::memcpy(at, &dword, 4);
      }
      for (std::int64_t col = 0; col < cols_; col += spec_.group) {
        const bf16 value = to_bf16(scale(random));
        std::memcpy(tile_scales_.data() + tile.scale_index(row, col) * 2, &value, 2);
      }
    }
  }
  void encode(std::int64_t offset, std::mt19937& random) {
    std::normal_distribution<float> normal(0.0f, 1.0f);
    float value = 0.0f;
    while (value == 0.0f) value = normal(random);
    std::byte* at = payload_.data() + offset;
    switch (spec_.format) {
      case QuantFormat::kF32:
        std::memcpy(at, &value, 4);
        break;
      case QuantFormat::kBf16: {
        const bf16 rounded = to_bf16(value);
        std::memcpy(at, &rounded, 2);
        break;
      }
      case QuantFormat::kF16: {  // any finite half near 1
        const auto bits = static_cast<std::uint16_t>((random() & 0x87ffu) | 0x3400u);
        std::memcpy(at, &bits, 2);
        break;
      }
      case QuantFormat::kF8E4m3B128: {
        std::uint8_t code = 0x7f;
        while ((code & 0x7f) == 0x7f || (code & 0x7f) == 0)
          code = static_cast<std::uint8_t>(random());
        std::memcpy(at, &code, 1);
        break;
      }
      case QuantFormat::kInt8:
      case QuantFormat::kInt4:
        break;  // fill_integers
    }
  }
  QuantView view(const std::vector<std::byte>& payload, const std::byte* scales,
                 WeightLayout layout) const {
    QuantView v;
    v.payload = payload.data();
    v.scales = spec_.has_scales() ? scales : nullptr;
    v.rows = rows_;
    v.cols = cols_;
    v.spec = spec_;
    v.layout = layout;
    return v;
  }

  std::int64_t rows_, cols_;
  QuantSpec spec_;
  std::vector<std::byte> payload_, tile_payload_, tile_scales_;
  std::vector<float> scales_;
};

}  // namespace stoker
