// Matrices and who owns them. A TensorView copies freely and may point into another device's
// memory: core never dereferences one. A Tensor owns its memory and only moves.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <utility>

#include "core/base/check.h"
#include "core/tensor/dtype.h"

namespace stoker {

// Where memory lies. The host is one device; every backend with memory of its own has another.
struct DeviceId {
  int index = 0;  // 0: host memory
  bool operator==(const DeviceId&) const = default;
};
inline constexpr DeviceId kHost{0};

// A row-major matrix [rows, cols]; a vector is one row. `row_stride` counts elements.
struct TensorView {
  void* data = nullptr;
  DType dtype = DType::kF32;
  DeviceId device = kHost;
  std::int64_t rows = 0;
  std::int64_t cols = 0;
  std::int64_t row_stride = 0;

  bool empty() const { return data == nullptr; }
  std::size_t bytes() const { return static_cast<std::size_t>(rows * cols) * dtype_bytes(dtype); }

  // Typed address of a row, for code that runs where the memory lies.
  template <typename T>
  T* row(std::int64_t index) const {
    return static_cast<T*>(data) + index * row_stride;
  }

  TensorView row_slice(std::int64_t begin, std::int64_t count) const {
    CHECK(begin >= 0 && count >= 0 && begin + count <= rows, "rows [{}, {}) of {}", begin,
          begin + count, rows);
    TensorView view = *this;
    view.data = static_cast<std::byte*>(data) + begin * row_stride * dtype_bytes(dtype);
    view.rows = count;
    return view;
  }
  TensorView col_slice(std::int64_t begin, std::int64_t count) const {
    CHECK(begin >= 0 && count >= 0 && begin + count <= cols, "columns [{}, {}) of {}", begin,
          begin + count, cols);
    TensorView view = *this;
    view.data = static_cast<std::byte*>(data) + begin * dtype_bytes(dtype);
    view.cols = count;
    return view;
  }
};

inline TensorView make_view(void* data, DType dtype, std::int64_t rows, std::int64_t cols,
                            DeviceId device = kHost) {
  return TensorView{data, dtype, device, rows, cols, cols};
}

// Owns a matrix through the deleter of whoever allocated it.
class Tensor {
 public:
  Tensor() = default;
  Tensor(TensorView view, std::function<void(void*)> deleter)
      : view_(view), deleter_(std::move(deleter)) {}
  Tensor(Tensor&& other) noexcept
      : view_(std::exchange(other.view_, {})), deleter_(std::exchange(other.deleter_, nullptr)) {}
  Tensor& operator=(Tensor&& other) noexcept {
    if (this != &other) {
      release();
      view_ = std::exchange(other.view_, {});
      deleter_ = std::exchange(other.deleter_, nullptr);
    }
    return *this;
  }
  Tensor(const Tensor&) = delete;
  Tensor& operator=(const Tensor&) = delete;
  ~Tensor() { release(); }

  const TensorView& view() const { return view_; }
  bool empty() const { return view_.empty(); }

 private:
  void release() {
    if (deleter_ && view_.data) deleter_(view_.data);
  }

  TensorView view_;
  std::function<void(void*)> deleter_;
};

}  // namespace stoker
