// Which code computes: from --backend and the flags around it to a Backend.
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
  DType kv = DType::kBf16;
};
Result<BackendTypes> backend_types(const ModelFlags& flags);

struct BackendChoice {
  std::unique_ptr<Team> team;  // outlives the backend; null for backends that need none
  std::unique_ptr<Backend> backend;
};

// The calling thread is pinned from then on, if there is a Team.
Result<BackendChoice> make_backend(const ModelFlags& flags);

}  // namespace stoker::tools
