#include "gpu/cublaslt.h"

#include <cublasLt.h>
#include <dlfcn.h>
#include <fmt/format.h>

#include <string>

#include "gpu/native.h"

namespace stoker::gpu {
namespace {

constexpr std::int64_t kTunedRows = 4096;  // those of a chunk of prefill
constexpr std::uint32_t kAlignment = 16;   // bytes, of operands and their rows

Status lt_status(cublasStatus_t status, std::string_view operation) {
  if (status == CUBLAS_STATUS_SUCCESS) return {};
  return make_error(ErrorCode::kIo, "cuBLASLt {}: status {}", operation, static_cast<int>(status));
}

std::string library_name() { return fmt::format("libcublasLt.so.{}", CUBLAS_VER_MAJOR); }
void* open_library() { return dlopen(library_name().c_str(), RTLD_NOW | RTLD_LOCAL); }

bool is_aligned(const TensorView& view) {
  return reinterpret_cast<std::uintptr_t>(view.data) % kAlignment == 0 &&
         view.row_stride * dtype_bytes(view.dtype) % kAlignment == 0;
}

bool suits(const TensorView& x, const TensorView& y) {
  return x.dtype == DType::kBf16 && (y.dtype == DType::kBf16 || y.dtype == DType::kF32) &&
         is_aligned(x) && is_aligned(y) && x.cols * dtype_bytes(x.dtype) % kAlignment == 0;
}

}  // namespace

struct CublasLt::Library {
  explicit Library(void* opened) : library(opened) {}
  ~Library() { dlclose(library); }
  Library(const Library&) = delete;
  Library& operator=(const Library&) = delete;

  template <typename F>
  bool find(const char* name, F*& function) {
    function = reinterpret_cast<F*>(dlsym(library, name));
    return function != nullptr;
  }
  bool find_all() {
    return find("cublasLtCreate", create) && find("cublasLtDestroy", destroy) &&
           find("cublasLtMatmul", matmul) &&
           find("cublasLtMatmulAlgoGetHeuristic", get_heuristic) &&
           find("cublasLtMatmulDescInit_internal", init_desc) &&
           find("cublasLtMatmulDescSetAttribute", set_desc) &&
           find("cublasLtMatrixLayoutInit_internal", init_layout) &&
           find("cublasLtMatmulPreferenceInit_internal", init_preference) &&
           find("cublasLtMatmulPreferenceSetAttribute", set_preference);
  }

  void* library;
  decltype(cublasLtCreate)* create = nullptr;
  decltype(cublasLtDestroy)* destroy = nullptr;
  decltype(cublasLtMatmul)* matmul = nullptr;
  decltype(cublasLtMatmulAlgoGetHeuristic)* get_heuristic = nullptr;
  decltype(cublasLtMatmulDescInit_internal)* init_desc = nullptr;
  decltype(cublasLtMatmulDescSetAttribute)* set_desc = nullptr;
  decltype(cublasLtMatrixLayoutInit_internal)* init_layout = nullptr;
  decltype(cublasLtMatmulPreferenceInit_internal)* init_preference = nullptr;
  decltype(cublasLtMatmulPreferenceSetAttribute)* set_preference = nullptr;
};

// cuBLASLt counts columns first: y^T [rows of w, T] = w [rows, cols] . x^T.
struct CublasLt::Product {
  std::int64_t outputs, inputs, x_stride, y_stride;
  DType y_type;
  bool has_algorithm = false;
  cublasLtMatmulDescOpaque_t desc;
  cublasLtMatrixLayoutOpaque_t w;
  cublasLtMatmulAlgo_t algorithm;

  cudaDataType_t y_data_type() const { return y_type == DType::kF32 ? CUDA_R_32F : CUDA_R_16BF; }
};

CublasLt::CublasLt(std::unique_ptr<Library> library, void* handle)
    : library_(std::move(library)), handle_(handle) {}

CublasLt::~CublasLt() { library_->destroy(static_cast<cublasLtHandle_t>(handle_)); }

std::string CublasLt::missing_library() {
  void* const opened = open_library();
  if (opened == nullptr) return library_name();
  dlclose(opened);
  return "";
}

std::unique_ptr<CublasLt> CublasLt::open() {
  void* const opened = open_library();
  if (opened == nullptr) return nullptr;
  auto library = std::make_unique<Library>(opened);
  if (!library->find_all()) return nullptr;
  cublasLtHandle_t handle = nullptr;
  if (library->create(&handle) != CUBLAS_STATUS_SUCCESS) return nullptr;
  return std::unique_ptr<CublasLt>(new CublasLt(std::move(library), handle));
}

Result<bool> CublasLt::takes(const TensorView& x, const TensorView& y) {
  if (!suits(x, y)) return false;
  ASSIGN_OR_RETURN(const Product* const product, product_for(x, y));
  return product->has_algorithm;
}

Result<CublasLt::Product*> CublasLt::product_for(const TensorView& x, const TensorView& y) {
  for (const auto& known : products_) {
    if (known->outputs == y.cols && known->inputs == x.cols && known->x_stride == x.row_stride &&
        known->y_stride == y.row_stride && known->y_type == y.dtype) {
      return known.get();
    }
  }
  auto made = std::make_unique<Product>();
  Product& product = *made;
  product.outputs = y.cols;
  product.inputs = x.cols;
  product.x_stride = x.row_stride;
  product.y_stride = y.row_stride;
  product.y_type = y.dtype;
  // 1. What is multiplied.
  RETURN_IF_ERROR(lt_status(
      library_->init_desc(&product.desc, sizeof product.desc, CUBLAS_COMPUTE_32F, CUDA_R_32F),
      "describing a product"));
  const cublasOperation_t transposed = CUBLAS_OP_T;
  RETURN_IF_ERROR(lt_status(library_->set_desc(&product.desc, CUBLASLT_MATMUL_DESC_TRANSA,
                                               &transposed, sizeof transposed),
                            "describing a product"));
  const auto layout = [&](cublasLtMatrixLayoutOpaque_t& out, cudaDataType_t type, std::int64_t rows,
                          std::int64_t cols, std::int64_t stride) {
    return lt_status(library_->init_layout(&out, sizeof out, type, static_cast<std::uint64_t>(rows),
                                           static_cast<std::uint64_t>(cols), stride),
                     "describing a matrix");
  };
  cublasLtMatrixLayoutOpaque_t tuned_x, tuned_y;
  RETURN_IF_ERROR(layout(product.w, CUDA_R_16BF, x.cols, y.cols, x.cols));
  RETURN_IF_ERROR(layout(tuned_x, CUDA_R_16BF, x.cols, kTunedRows, x.row_stride));
  RETURN_IF_ERROR(layout(tuned_y, product.y_data_type(), y.cols, kTunedRows, y.row_stride));
  // 2. How: no workspace and no reduction between blocks, so that every output is one sum.
  cublasLtMatmulPreferenceOpaque_t preference;
  RETURN_IF_ERROR(
      lt_status(library_->init_preference(&preference, sizeof preference), "stating a preference"));
  const std::uint32_t reductions = CUBLASLT_REDUCTION_SCHEME_NONE;
  RETURN_IF_ERROR(
      lt_status(library_->set_preference(&preference, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
                                         &reductions, sizeof reductions),
                "stating a preference"));
  const std::uint32_t alignment = kAlignment;
  for (const auto attribute :
       {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES}) {
    RETURN_IF_ERROR(
        lt_status(library_->set_preference(&preference, attribute, &alignment, sizeof alignment),
                  "stating a preference"));
  }
  cublasLtMatmulHeuristicResult_t found;
  int num_found = 0;
  const cublasStatus_t chosen =
      library_->get_heuristic(static_cast<cublasLtHandle_t>(handle_), &product.desc, &product.w,
                              &tuned_x, &tuned_y, &tuned_y, &preference, 1, &found, &num_found);
  if (chosen != CUBLAS_STATUS_NOT_SUPPORTED) {
    RETURN_IF_ERROR(lt_status(chosen, "choosing an algorithm"));
    product.has_algorithm = num_found > 0;
  }
  if (product.has_algorithm) product.algorithm = found.algo;
  products_.push_back(std::move(made));
  return products_.back().get();
}

Status CublasLt::multiply(const bf16* w, const TensorView& x, const TensorView& y,
                          const Stream& stream) {
  ASSIGN_OR_RETURN(Product* const product, product_for(x, y));
  CHECK(suits(x, y) && product->has_algorithm && x.rows == y.rows, "{} [{}, {}] to {} [{}, {}]",
        dtype_name(x.dtype), x.rows, x.cols, dtype_name(y.dtype), y.rows, y.cols);
  cublasLtMatrixLayoutOpaque_t x_layout, y_layout;
  const auto num_rows = static_cast<std::uint64_t>(x.rows);
  RETURN_IF_ERROR(
      lt_status(library_->init_layout(&x_layout, sizeof x_layout, CUDA_R_16BF,
                                      static_cast<std::uint64_t>(x.cols), num_rows, x.row_stride),
                "describing a matrix"));
  RETURN_IF_ERROR(
      lt_status(library_->init_layout(&y_layout, sizeof y_layout, product->y_data_type(),
                                      static_cast<std::uint64_t>(y.cols), num_rows, y.row_stride),
                "describing a matrix"));
  const float one = 1.0f, zero = 0.0f;
  return lt_status(
      library_->matmul(static_cast<cublasLtHandle_t>(handle_), &product->desc, &one, w, &product->w,
                       x.data, &x_layout, &zero, y.data, &y_layout, y.data, &y_layout,
                       &product->algorithm, nullptr, 0, native(stream)),
      "multiplying");
}

}  // namespace stoker::gpu
