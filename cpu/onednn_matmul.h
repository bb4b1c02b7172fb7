// Many-row products by oneDNN, on tiles of one fixed shape per type: matmul_rows() x 64 outputs x
// all inputs. The only file that knows oneDNN.
//
// A tile is computed by the thread that asks (OpenMP is told to use one), with the same primitive
// whatever the number of rows, so a row's bits depend on nothing but itself, and not on the thread
// count. That holds if a row's bits do not depend on its place in the tile either, and not every
// number of rows has that (F32 on AVX2 with 32 rows does not): InvarianceTest decides.
//
// --isa reaches oneDNN through dnnl_set_max_cpu_isa, which holds for the process and only before
// oneDNN is first used: the first PanelMatmul of a process decides, later ones run what it allowed.
#pragma once

#include <cstdint>
#include <memory>

#include "core/base/error.h"
#include "core/tensor/dtype.h"
#include "cpu/isa.h"

namespace stoker::cpu {

// Of a tile. Few, since what a tile holds beyond an expert's rows is computed in vain.
constexpr int matmul_rows(DType dtype) { return dtype == DType::kBf16 ? 32 : 64; }
inline constexpr int kMostMatmulRows = 64;

class PanelMatmul {
 public:
  PanelMatmul(int num_workers, Isa isa);
  ~PanelMatmul();
  PanelMatmul(const PanelMatmul&) = delete;
  PanelMatmul& operator=(const PanelMatmul&) = delete;

  // Whether BF16 x BF16 -> F32 runs on real kernels here; F32 always does.
  bool has_bf16() const;

  // Creates what run() needs for `depth` inputs of `dtype`, if it is not there yet. Driver thread.
  Status prepare(std::int64_t depth, DType dtype);
  // out [rows, 64] F32 = x [rows, depth] . panel, the panel as Kernels::decode_panel writes it for
  // `dtype`, x dense of the same dtype. Requires: prepare(depth, dtype). Any worker.
  void run(int worker, std::int64_t depth, DType dtype, const void* x, void* panel, float* out);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace stoker::cpu
