// Products of many rows through cuBLASLt, if the machine has it: opened at run time, never linked,
// so that the program starts without it.
//
// A row's bits depend on the row and the weight alone: an algorithm is chosen once per shape of the
// weight, for a fixed number of rows, among those that neither split nor reorder a row's sum.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "core/tensor/tensor.h"
#include "gpu/device.h"

namespace stoker::gpu {

class CublasLt {
 public:
  // For the current device. Null where the library is missing or does not start.
  static std::unique_ptr<CublasLt> open();
  // The file that is missing; empty: it is there.
  static std::string missing_library();
  ~CublasLt();
  CublasLt(const CublasLt&) = delete;
  CublasLt& operator=(const CublasLt&) = delete;

  // Whether multiply() takes such operands: their types, alignments, and that the library has an
  // algorithm for them. The number of rows does not matter.
  Result<bool> takes(const TensorView& x, const TensorView& y);

  // y = x . w^T for BF16 w [y.cols, x.cols], row-major and contiguous. Requires: takes(x, y).
  Status multiply(const bf16* w, const TensorView& x, const TensorView& y, const Stream& stream);

 private:
  struct Library;
  struct Product;
  CublasLt(std::unique_ptr<Library> library, void* handle);
  Result<Product*> product_for(const TensorView& x, const TensorView& y);

  std::unique_ptr<Library> library_;
  void* handle_;
  std::vector<std::unique_ptr<Product>> products_;  // one per shape, types and strides
};

}  // namespace stoker::gpu
