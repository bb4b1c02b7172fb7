// stoker render: conversations to prompts and completions to messages, as the model's chat format
// defines them.

#include <iostream>
#include <memory>

#include "core/text/render_case.h"
#include "tools/command.h"
#include "tools/standard_io.h"
#include "tools/text_model.h"

namespace stoker::tools {
namespace {

struct RenderFlags {
  std::string model;
  TextFlags text;
  bool parse = false;
};

Result<int> run(const RenderFlags& flags) {
  ASSIGN_OR_RETURN(const std::unique_ptr<ChatFormat> format,
                   load_chat_format(flags.model, flags.text.chat_format));
  std::string line;
  while (read_line(std::cin, line)) {
    RETURN_IF_ERROR(write_output(render_case_line(*format, line, flags.parse) + "\n"));
  }
  return 0;
}

}  // namespace

Command add_render(CLI::App& program) {
  auto flags = std::make_shared<RenderFlags>();
  CLI::App* app = program.add_subcommand(
      "render", "Standard input: one conversation a line as JSON; standard output: its prompt");
  add_text_directory(*app, flags->model);
  app->add_flag("--parse", flags->parse,
                "The other way: completions in, messages out, as strict as the format is defined");
  add_chat_format_flag(*app, flags->text);
  app->footer(
      "A line holds {\"thinking_mode\": \"chat\"|\"thinking\", \"messages\": [...]} and may hold\n"
      "\"context\" (earlier messages, not printed), \"drop_thinking\" and "
      "\"add_default_bos_token\";\nwith --parse {\"thinking_mode\", \"completion\"}. The answer is "
      "{\"prompt\": \"...\"}, with --parse\n{\"message\": {...}}, and {\"error\": \"...\"} for a "
      "refused line; the exit status stays 0.");
  return {app, [flags] { return run(*flags); }};
}

}  // namespace stoker::tools
