// WeightSource and ExpertSource: where weights are read from. Implemented by storage; tests use
// memory.
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "core/base/error.h"
#include "core/tensor/quant_view.h"

namespace stoker {

// A tensor as stored, row-major in host memory, alive while `owner` is.
struct HostWeight {
  QuantView view;  // payload, scales resolved; a vector is one row
  std::shared_ptr<const void> owner;
};

// Named tensors of a model. Thread-safe for concurrent reads after opening.
class WeightSource {
 public:
  virtual ~WeightSource() = default;
  virtual bool has(std::string_view name) const = 0;
  // Reads `name` and, for FP8, its scales. Errors name the file and the tensor; a shape other than
  // [rows, cols] (a vector: rows 1) is an error that gives both.
  virtual Result<HostWeight> read(std::string_view name, std::int64_t rows,
                                  std::int64_t cols) const = 0;
  // Stored bytes of what a run holds beside the routed experts: the total that progress counts
  // towards.
  virtual std::int64_t dense_bytes() const = 0;
  // Every tensor name, sorted.
  virtual std::vector<std::string> names() const = 0;
};

}  // namespace stoker
