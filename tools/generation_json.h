// The object that `stoker generate --json` prints.
#pragma once

#include "core/text/json_text.h"
#include "tools/generation.h"

namespace stoker::tools {

JsonValue generation_to_json(const Generation& generation, double load_s);

}  // namespace stoker::tools
