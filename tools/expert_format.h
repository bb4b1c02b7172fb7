// The flags that say how a store's experts are kept.
#pragma once

#include <CLI/CLI.hpp>
#include <optional>
#include <string>

#include "core/base/error.h"
#include "core/tensor/quant_view.h"

namespace stoker::tools {

struct ExpertFormatFlags {
  std::string experts;  // fp8, int8, int4, stored; empty: the command's default
  int group = 0;        // 0: the format's default
};

// Declares --experts, with `experts_help`, and --group. `stored`: whether "stored" is a choice.
void add_expert_format_flags(CLI::App& app, ExpertFormatFlags& flags,
                             const std::string& experts_help, bool stored);

// What they ask for; `experts` must be given and not "stored".
Result<QuantSpec> expert_spec_of(const ExpertFormatFlags& flags);

}  // namespace stoker::tools
