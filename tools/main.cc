// stoker: one program, a subcommand per file of this folder.

#include <fmt/format.h>

#include <cstdio>

#include "tools/command.h"

int main(int argc, char** argv) {
  using namespace stoker;
  CLI::App program(
      "Runs DeepSeek-V3.2 class mixture-of-experts models on machines that cannot hold them.",
      "stoker");
  program.set_version_flag("--version", std::string("stoker ") + STOKER_VERSION);
  program.require_subcommand(1);
  program.get_formatter()->column_width(44);
  const std::vector<tools::Command> commands = {
      tools::add_chat(program),   tools::add_generate(program), tools::add_tokenize(program),
      tools::add_render(program), tools::add_eval(program),     tools::add_inspect(program),
  };
  try {
    program.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    const int status = program.exit(error);  // prints help (0) or what was wrong
    return status == 0 ? 0 : 2;
  }
  for (const tools::Command& command : commands) {
    if (!command.app->parsed()) continue;
    Result<int> status = command.run();
    if (status.ok()) return *status;
    fmt::print(stderr, "stoker: {}\n", status.error().message());
    return 1;
  }
  return 2;
}
