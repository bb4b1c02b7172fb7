#include "core/interface/backend.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <new>

namespace stoker {

bool StepView::may_have_parts() const {
  return num_rows() <= kMostPartRows && std::ranges::all_of(ranges, [](const RowRange& range) {
           return range.purpose == Purpose::kDecode;
         });
}

Result<Tensor> Backend::allocate_host(DType dtype, std::int64_t rows, std::int64_t cols) {
  constexpr std::align_val_t kAlign{64};
  TensorView view = make_view(nullptr, dtype, rows, cols);
  const std::size_t bytes = view.bytes() == 0 ? 1 : view.bytes();
  view.data = ::operator new(bytes, kAlign, std::nothrow);
  if (view.data == nullptr) {
    return make_error(ErrorCode::kResource, "no memory for {} bytes of host buffers", bytes);
  }
  std::memset(view.data, 0, bytes);
  return Tensor(view, [](void* data) { ::operator delete(data, kAlign); });
}

void Backend::prepare_attention(const StepView& step, const AttentionInputParams& params) {
  const AttentionDims& dims = params.dims;
  const TensorView latent = params.kv_a.col_slice(0, dims.latent_dim);
  rope(step, params.queries, dims.num_heads, dims.nope_dim + dims.rope_dim, dims.nope_dim,
       dims.rope_dim, RopeStyle::kInterleaved);
  rms_norm(step, latent, params.norm_weight, params.norm_eps, latent);
  rope(step, params.kv_a, 1, 0, dims.latent_dim, dims.rope_dim, RopeStyle::kInterleaved);
  append_latent(step, params.kv_a, params.latents);
  if (params.indexer == nullptr) return;
  const IndexInputParams& index = *params.indexer;
  layer_norm(step, index.key, index.norm_weight, index.norm_bias, index.norm_eps);
  rope(step, index.key, 1, 0, 0, dims.rope_dim, RopeStyle::kHalfSplit);
  append_index_key(step, index.key, index.keys);
  rope(step, index.queries, index.dims.num_heads, index.dims.head_dim, 0, dims.rope_dim,
       RopeStyle::kHalfSplit);
  scale(step, index.weights, index.weight_factor);
}

}  // namespace stoker
