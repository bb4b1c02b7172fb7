// stoker inspect: what a model holds and costs, and what this machine has.

#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "tools/command.h"
#include "tools/inspect_machine.h"
#include "tools/inspect_model.h"
#include "tools/json_object.h"
#include "tools/model.h"
#include "tools/standard_io.h"

namespace stoker::tools {
namespace {

struct InspectFlags {
  ModelFlags model;
  std::vector<std::string> expert_dirs;
  bool machine = false;
  bool json = false;
};

Result<int> run(const InspectFlags& flags) {
  std::optional<ModelReport> model;
  if (!flags.model.model.empty() || !flags.machine) {
    ASSIGN_OR_RETURN(const std::filesystem::path directory, model_directory(flags.model.model));
    const std::vector<std::filesystem::path> expert_dirs(flags.expert_dirs.begin(),
                                                         flags.expert_dirs.end());
    ASSIGN_OR_RETURN(model, inspect_model(directory, expert_dirs));
  }
  std::optional<MachineReport> machine;
  if (flags.machine) machine = inspect_machine();
  if (flags.json) {
    JsonObject object;
    if (model) object.add("model", model_to_json(*model));
    if (machine) object.add("machine", machine_to_json(*machine));
    RETURN_IF_ERROR(write_output(to_json_text(std::move(object).build()) + "\n"));
    return 0;
  }
  std::string text;
  if (model) text += model_to_text(*model);
  if (model && machine) text += "\n";
  if (machine) text += machine_to_text(*machine);
  RETURN_IF_ERROR(write_output(text));
  return 0;
}

}  // namespace

Command add_inspect(CLI::App& program) {
  auto flags = std::make_shared<InspectFlags>();
  CLI::App* app = program.add_subcommand(
      "inspect", "What a model holds and what a token of it costs; what this machine has");
  add_model_argument(*app, flags->model);
  as_list(app->add_option(
      "--store", flags->expert_dirs,
      "Directories that hold a packed model's expert files instead of its own, A,B"));
  app->add_flag("--machine", flags->machine,
                "This machine: cores, caches, NUMA nodes, GPUs, drives, instruction sets (and the "
                "model only if MODEL is given)");
  app->add_flag("--json", flags->json, "One JSON object: \"model\" and \"machine\", as asked for");
  return {app, [flags] { return run(*flags); }};
}

}  // namespace stoker::tools
