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

}  // namespace stoker
