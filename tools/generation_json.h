// The object that `stoker generate --json` prints.
#pragma once

#include <string_view>

#include "core/text/json_text.h"
#include "tools/generation.h"

namespace stoker::tools {

// `expert_arithmetic`: in which decode computed experts, a value of that flag.
JsonValue generation_to_json(const Generation& generation, double load_s,
                             std::string_view expert_arithmetic);

}  // namespace stoker::tools
