// stoker: one program, a subcommand per file of this folder.

#include <fmt/format.h>

#include <csignal>
#include <cstdio>
#include <exception>
#include <string>
#include <vector>

#include "tools/command.h"

namespace stoker::tools {
namespace {

int run(int argc, char** argv) {
  CLI::App program(
      "Runs DeepSeek-V3.2 class mixture-of-experts models on machines that cannot hold them.",
      "stoker");
  program.set_version_flag("--version", std::string("stoker ") + STOKER_VERSION);
  program.require_subcommand(1);
  program.get_formatter()->column_width(44);
  const std::vector<Command> commands = {
      add_chat(program),  add_generate(program), add_tokenize(program), add_render(program),
      add_eval(program),  add_inspect(program),  add_pack(program),     add_verify(program),
      add_synth(program), add_bench(program),    add_simulate(program),
  };
  try {
    program.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    const int status = program.exit(error);  // prints help (0) or what was wrong
    return status == 0 ? 0 : 2;
  }
  for (const Command& command : commands) {
    if (!command.app->parsed()) continue;
    const Result<int> status = command.run();
    if (status.ok()) return *status;
    // The user or the reader of our output wants no more: nothing to complain about.
    if (status.error().code() == ErrorCode::kCancelled) return 0;
    fmt::print(stderr, "stoker: {}\n", status.error().message());
    return status.error().code() == ErrorCode::kUsage ? 2 : 1;
  }
  return 2;
}

}  // namespace
}  // namespace stoker::tools

int main(int argc, char** argv) {
  std::signal(SIGPIPE, SIG_IGN);  // a closed output is an error of a write, and handled there
  try {
    return stoker::tools::run(argc, argv);
  } catch (const std::exception& error) {  // out of memory, above all
    std::fprintf(stderr, "stoker: %s\n", error.what());
    return 1;
  }
}
