#include "tools/expert_format.h"

#include <fmt/format.h>

#include <vector>

namespace stoker::tools {

void add_expert_format_flags(CLI::App& app, ExpertFormatFlags& flags,
                             const std::string& experts_help, bool stored) {
  std::vector<std::string> choices = {"fp8", "int8", "int4"};
  if (stored) choices.emplace_back("stored");
  app.add_option("--experts", flags.experts, experts_help)->check(CLI::IsMember(choices));
  app.add_option("--group", flags.group,
                 "Inputs that share a scale: 32, 64 (default) or 128 for int4; int8 has 128")
      ->check(CLI::IsMember({32, 64, 128}));
}

Result<QuantSpec> expert_spec_of(const ExpertFormatFlags& flags) {
  std::string name = "fp8_e4m3_b128";
  if (flags.experts != "fp8") {
    const int fallback = flags.experts == "int4" ? 64 : 128;
    name = fmt::format("{}_g{}", flags.experts, flags.group == 0 ? fallback : flags.group);
  } else if (flags.group != 0) {
    return make_error(ErrorCode::kUsage,
                      "--group is for int4 and int8; fp8 has blocks of 128 x 128");
  }
  const std::optional<QuantSpec> spec = parse_quant_spec(name);
  if (!spec) {
    return make_error(ErrorCode::kUsage, "--experts {} has no --group {}", flags.experts,
                      flags.group);
  }
  return *spec;
}

}  // namespace stoker::tools
