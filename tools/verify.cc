// stoker verify: reads every byte of a store and checks it.

#include <fmt/format.h>

#include <memory>
#include <string>
#include <vector>

#include "storage/store.h"
#include "storage/store_verify.h"
#include "tools/command.h"
#include "tools/json_object.h"
#include "tools/progress_bar.h"
#include "tools/standard_io.h"

namespace stoker::tools {
namespace {

struct VerifyFlags {
  std::string store;
  std::vector<std::string> expert_dirs;
  bool json = false;
};

std::string to_text(const storage::VerifyReport& report) {
  std::string text;
  for (const storage::BadStretch& bad : report.bad) {
    text += bad.bytes == 0 ? fmt::format("{}: {}\n", bad.file.string(), bad.problem)
                           : fmt::format("{}: bytes {} to {}: {}\n", bad.file.string(), bad.offset,
                                         bad.offset + bad.bytes, bad.problem);
  }
  for (const auto& path : report.unknown) {
    text += fmt::format("note: {}: is no part of the store\n", path.string());
  }
  return text +
         fmt::format("{} files, {} checksums, {:.2f} GB: {}\n", report.num_files,
                     report.num_checksums, static_cast<double>(report.bytes) / 1e9,
                     report.bad.empty() ? "all good" : fmt::format("{} bad", report.bad.size()));
}

JsonValue to_json(const storage::VerifyReport& report) {
  JsonArray bad, unknown;
  for (const storage::BadStretch& stretch : report.bad) {
    JsonObject object;
    object.add("file", stretch.file.string())
        .add("offset", stretch.offset)
        .add("bytes", stretch.bytes)
        .add("problem", stretch.problem);
    bad.push_back(std::move(object).build());
  }
  for (const auto& path : report.unknown) unknown.emplace_back(path.string());
  JsonObject object;
  object.add("good", report.bad.empty())
      .add("files", report.num_files)
      .add("checksums", report.num_checksums)
      .add("bytes", report.bytes)
      .add("bad", JsonValue(std::move(bad)))
      .add("unknown", JsonValue(std::move(unknown)));
  return std::move(object).build();
}

Result<int> run(const VerifyFlags& flags) {
  const std::filesystem::path dir = flags.store;
  if (!storage::Store::is_store(dir)) {
    return make_error(ErrorCode::kInvalidArgument,
                      "{}: is no packed store: it has no manifest.json", dir.string());
  }
  const std::vector<std::filesystem::path> expert_dirs(flags.expert_dirs.begin(),
                                                       flags.expert_dirs.end());
  storage::VerifyReport report;
  {
    ProgressBar progress("verifying", ProgressBar::Unit::kBytes);
    ASSIGN_OR_RETURN(report, storage::verify_store(dir, expert_dirs, progress.callback()));
  }
  RETURN_IF_ERROR(
      write_output(flags.json ? to_json_text(to_json(report)) + "\n" : to_text(report)));
  return report.bad.empty() ? 0 : 1;
}

}  // namespace

Command add_verify(CLI::App& program) {
  auto flags = std::make_shared<VerifyFlags>();
  CLI::App* app = program.add_subcommand(
      "verify", "Reads every byte of a store and checks it; lists what is bad, exit status 1 then");
  app->add_option("STORE", flags->store, "Directory of the store")->required();
  as_list(app->add_option(
      "--store", flags->expert_dirs,
      "Directories that hold its expert files instead, A,B; every copy is checked"));
  app->add_flag("--json", flags->json, "One JSON object");
  return {app, [flags] { return run(*flags); }};
}

}  // namespace stoker::tools
