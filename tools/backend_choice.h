// Which code computes: from --backend and the flags around it to a Backend.
#pragma once

#include <memory>

#include "core/base/error.h"
#include "core/base/team.h"
#include "core/interface/backend.h"
#include "tools/model_flags.h"

namespace stoker::tools {

struct BackendChoice {
  std::unique_ptr<Team> team;  // outlives the backend; null for backends that need none
  std::unique_ptr<Backend> backend;
};

Result<BackendChoice> make_backend(const ModelFlags& flags);

}  // namespace stoker::tools
