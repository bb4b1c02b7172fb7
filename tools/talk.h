// What chat and generate have in common: the flags, and a model that takes and gives text.
#pragma once

#include <CLI/CLI.hpp>
#include <optional>
#include <string>
#include <vector>

#include "core/base/error.h"
#include "core/runtime/sampler.h"
#include "tools/model.h"
#include "tools/sampling_flags.h"
#include "tools/text_model.h"

namespace stoker::tools {

struct TalkFlags {
  ModelFlags model;
  TextFlags text;
  SamplingFlags sampling;
  int max_tokens = 0;  // 0: as many as the context holds
  std::string system;
  std::string tools;  // a file
};

// All but --system and --tools, which the caller may want in a group of its own.
void add_talk_flags(CLI::App& app, TalkFlags& flags);
CLI::Option* add_system_flag(CLI::App& app, TalkFlags& flags);
CLI::Option* add_tools_flag(CLI::App& app, TalkFlags& flags);

struct TalkingModel {
  LoadedModel model;
  std::optional<TextModel> text;  // always set
  SamplerOptions sampler;
  std::vector<TokenId> eos;  // whatever ends an answer
};

// Cheap checks first: what is wrong with text files or flags is said before weights are read.
Result<TalkingModel> load_talking_model(const TalkFlags& flags);

}  // namespace stoker::tools
