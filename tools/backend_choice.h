// Which code computes: from --backend and the flags around it to backends.
#pragma once

#include <memory>

#include "core/base/error.h"
#include "core/base/team.h"
#include "core/interface/backend.h"
#include "tools/model_flags.h"

namespace stoker::tools {

// What a backend will compute and cache with; known before it is made.
struct BackendTypes {
  DType activations = DType::kBf16;
  KvFormat kv = KvFormat::kBf16;
};
Result<BackendTypes> backend_types(const ModelFlags& flags);

struct BackendChoice {
  std::unique_ptr<Team> team;  // outlives the backend; null for backends that need none
  std::unique_ptr<Backend> backend;
};

// The backend of the host: --backend reference, or the CPU's. The calling thread is pinned from
// then on, if there is a Team.
Result<BackendChoice> make_host_backend(const ModelFlags& flags);

}  // namespace stoker::tools
