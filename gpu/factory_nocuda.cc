// The factory of a build without CUDA.
#include "gpu/factory.h"

namespace stoker {

Result<std::unique_ptr<Backend>> make_cuda_backend(const CudaBackendOptions&) {
  return make_error(ErrorCode::kUnsupported,
                    "the CUDA backend is missing: this program was built without CUDA (configure "
                    "with -DSTOKER_CUDA=ON and the CUDA toolkit, or use --backend cpu)");
}

std::vector<GpuInfo> list_gpus() { return {}; }

std::string cuda_support() { return "built without CUDA"; }

}  // namespace stoker
