// A subcommand: a file in tools/ that declares its flags once and says what to run.
#pragma once

#include <CLI/CLI.hpp>
#include <functional>
#include <vector>

#include "core/base/error.h"

namespace stoker::tools {

// A flag whose value is a list: `--ram 1GiB,2GiB`. What stands after it is no part of it.
inline CLI::Option* as_list(CLI::Option* option) {
  return option->delimiter(',')->allow_extra_args(false);
}

// What main() dispatches on. `run` returns the exit status, or an Error that main() prints: status
// 2 for kUsage, else 1.
struct Command {
  CLI::App* app = nullptr;
  std::function<Result<int>()> run;
};

// One per subcommand, called by main() in the order of `stoker --help`.
Command add_chat(CLI::App& program);
Command add_generate(CLI::App& program);
Command add_tokenize(CLI::App& program);
Command add_render(CLI::App& program);
Command add_eval(CLI::App& program);
Command add_inspect(CLI::App& program);
Command add_pack(CLI::App& program);
Command add_verify(CLI::App& program);
Command add_synth(CLI::App& program);
Command add_bench(CLI::App& program);
Command add_simulate(CLI::App& program);

}  // namespace stoker::tools
