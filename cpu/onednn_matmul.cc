#include "cpu/onednn_matmul.h"

#include <omp.h>

#include <oneapi/dnnl/dnnl.hpp>
#include <optional>
#include <string_view>
#include <vector>

#include "core/base/check.h"
#include "cpu/kernels.h"

namespace stoker::cpu {
namespace {

using Tag = dnnl::memory::format_tag;

std::optional<dnnl::cpu_isa> max_isa(Isa isa) {
  switch (isa) {
    case Isa::kScalar:
      return dnnl::cpu_isa::sse41;  // the least that oneDNN knows
    case Isa::kAvx2:
      return dnnl::cpu_isa::avx2;
    case Isa::kAvx512:
      return dnnl::cpu_isa::avx512_core_bf16;
    case Isa::kAmx:
      break;
  }
  return std::nullopt;
}

// oneDNN 3 folded the operation descriptor into the primitive descriptor.
dnnl::matmul::primitive_desc describe(const dnnl::engine& engine, const dnnl::memory::desc& src,
                                      const dnnl::memory::desc& weights,
                                      const dnnl::memory::desc& dst) {
  dnnl::primitive_attr attr;
  attr.set_scratchpad_mode(dnnl::scratchpad_mode::user);  // the library's own is not thread-safe
#if DNNL_VERSION_MAJOR >= 3
  return dnnl::matmul::primitive_desc(engine, src, weights, dst, attr);
#else
  return dnnl::matmul::primitive_desc(dnnl::matmul::desc(src, weights, dst), attr, engine);
#endif
}

struct Product {
  std::int64_t depth = 0;
  DType dtype = DType::kF32;
  dnnl::matmul primitive;
  struct PerWorker {
    dnnl::memory src, weights, dst, scratchpad;
  };
  std::vector<PerWorker> workers;
};

void one_thread_here() {
  thread_local bool told = false;
  if (told) return;
  omp_set_num_threads(1);
  told = true;
}

}  // namespace

struct PanelMatmul::Impl {
  Impl(int num_workers_in, Isa isa) : num_workers(num_workers_in) {
    if (const auto limit = max_isa(isa)) {
      (void)dnnl_set_max_cpu_isa(static_cast<dnnl_cpu_isa_t>(*limit));
    }
    engine = dnnl::engine(dnnl::engine::kind::cpu, 0);
    for (int worker = 0; worker < num_workers; ++worker) streams.emplace_back(engine);
  }

  Product make(std::int64_t depth, DType dtype) const;

  const Product* find(std::int64_t depth, DType dtype) const {
    for (const Product& product : products) {
      if (product.depth == depth && product.dtype == dtype) return &product;
    }
    return nullptr;
  }

  int num_workers;
  dnnl::engine engine;
  std::vector<dnnl::stream> streams;
  std::vector<Product> products;
  bool has_bf16 = false;
};

// Throws where oneDNN has no kernel worth the name.
Product PanelMatmul::Impl::make(std::int64_t depth, DType dtype) const {
  const bool narrow = dtype == DType::kBf16;
  const auto type = narrow ? dnnl::memory::data_type::bf16 : dnnl::memory::data_type::f32;
  const int rows = matmul_rows(dtype);
  const dnnl::memory::desc src({rows, depth}, type, Tag::ab);
  const dnnl::memory::desc weights({depth, kPanelCols}, type, narrow ? Tag::BA16a64b2a : Tag::ab);
  const dnnl::memory::desc dst({rows, kPanelCols}, dnnl::memory::data_type::f32, Tag::ab);
  const dnnl::matmul::primitive_desc desc = describe(engine, src, weights, dst);
  if (std::string_view(desc.impl_info_str()).find("ref") != std::string_view::npos) {
    throw dnnl::error(dnnl_unimplemented, "only the reference implementation");
  }
  Product product{.depth = depth, .dtype = dtype, .primitive = dnnl::matmul(desc), .workers = {}};
  for (int worker = 0; worker < num_workers; ++worker) {
    product.workers.push_back({dnnl::memory(src, engine, DNNL_MEMORY_NONE),
                               dnnl::memory(weights, engine, DNNL_MEMORY_NONE),
                               dnnl::memory(dst, engine, DNNL_MEMORY_NONE),
                               dnnl::memory(desc.scratchpad_desc(), engine)});
  }
  return product;
}

PanelMatmul::PanelMatmul(int num_workers, Isa isa)
    : impl_(std::make_unique<Impl>(num_workers, isa)) {
  try {
    (void)impl_->make(kPanelDepthAlign, DType::kBf16);
    impl_->has_bf16 = true;
  } catch (const dnnl::error&) {
    impl_->has_bf16 = false;
  }
}
PanelMatmul::~PanelMatmul() = default;

bool PanelMatmul::has_bf16() const { return impl_->has_bf16; }

Status PanelMatmul::prepare(std::int64_t depth, DType dtype) {
  if (impl_->find(depth, dtype) != nullptr) return {};
  try {
    impl_->products.push_back(impl_->make(depth, dtype));
  } catch (const dnnl::error& error) {
    return make_error(ErrorCode::kUnsupported, "oneDNN has no {} product of {} inputs: {}",
                      dtype_name(dtype), depth, error.what());
  }
  return {};
}

void PanelMatmul::run(int worker, std::int64_t depth, DType dtype, const void* x, void* panel,
                      float* out) {
  one_thread_here();
  const Product* product = impl_->find(depth, dtype);
  CHECK(product != nullptr, "no {} product of {} inputs was prepared", dtype_name(dtype), depth);
  const Product::PerWorker& mine = product->workers[worker];
  // The C interface: the C++ one builds a map per call.
  const dnnl_exec_arg_t args[] = {{DNNL_ARG_SRC, mine.src.get()},
                                  {DNNL_ARG_WEIGHTS, mine.weights.get()},
                                  {DNNL_ARG_DST, mine.dst.get()},
                                  {DNNL_ARG_SCRATCHPAD, mine.scratchpad.get()}};
  const dnnl_status_t statuses[] = {
      dnnl_memory_set_data_handle(mine.src.get(), const_cast<void*>(x)),
      dnnl_memory_set_data_handle(mine.weights.get(), panel),
      dnnl_memory_set_data_handle(mine.dst.get(), out),
      dnnl_primitive_execute(product->primitive.get(), impl_->streams[worker].get(), 4, args)};
  for (const dnnl_status_t status : statuses) {
    CHECK(status == dnnl_success, "oneDNN failed with status {}", static_cast<int>(status));
  }
}

}  // namespace stoker::cpu
