// Weights of routed experts as tests make them: row-major numbers, and the tile16 form that blocks
// of a spec hold of them.
#pragma once

#include "quant/quantize.h"
#include "tests/gpu/cuda_test.h"

namespace stoker {

// Of the row-major matrix that blocks of `spec` are written from.
inline QuantFormat source_format(const QuantSpec& spec) {
  return spec.is_integer() ? QuantFormat::kBf16 : spec.format;
}

inline HostMatrix in_tile16(const HostMatrix& source, const QuantSpec& spec) {
  HostMatrix held;
  held.view = source.view;
  held.view.spec = spec;
  held.view.layout = WeightLayout::kTile16;
  const quant::Tile16 tile = quant::tile16_of(held.view);
  held.payload.resize(static_cast<std::size_t>(tile.payload_bytes() + tile.scale_bytes()));
  std::byte* const scales = held.payload.data() + tile.payload_bytes();
  if (spec.is_integer()) {
    quant::quantize_tile16(source.view, 0, source.view.rows, spec, held.payload.data(), scales);
  } else {
    quant::relay_tile16(source.view, 0, source.view.rows, held.payload.data(), scales);
  }
  held.view.payload = held.payload.data();
  held.view.scales = spec.has_scales() ? scales : nullptr;
  return held;
}

}  // namespace stoker
