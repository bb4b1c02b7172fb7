// A context that nobody computed: for benchmarks of decode after many tokens.
#pragma once

#include "core/base/error.h"
#include "core/runtime/runner.h"

namespace stoker::tools {

// Appends `num_tokens` positions to `kv`, whose rows are random and differ from one another: of the
// size that norms leave, so that scores and sums are those of a real context in kind.
Status append_random_context(Runner& runner, KvSequence& kv, int num_tokens);

}  // namespace stoker::tools
