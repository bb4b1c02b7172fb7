#include "cpu/kernels.h"

#include "core/base/check.h"
#include "quant/tile16.h"

namespace stoker::cpu {

TileMatrix tile_matrix(const QuantView& view) {
  CHECK(view.layout == WeightLayout::kTile16 && view.device == kHost,
        "a tile16 matrix on the host");
  CHECK(view.spec.group > 0 && view.spec.group % kInputAlign == 0, "group {}", view.spec.group);
  return TileMatrix{.payload = view.payload,
                    .scales = view.scales,
                    .format = view.spec.format,
                    .rows = view.rows,
                    .cols = view.cols,
                    .group = view.spec.group,
                    .tile_bytes = quant::tile16_of(view).tile_bytes()};
}

const Kernels& kernels_for(Isa isa) {
  if (isa >= Isa::kAvx512 && avx512_kernels() != nullptr) return *avx512_kernels();
  if (isa >= Isa::kAvx2 && avx2_kernels() != nullptr) return *avx2_kernels();
  return *scalar_kernels();
}

}  // namespace stoker::cpu
