// stoker generate: one completion.

#include <fmt/format.h>
#include <unistd.h>

#include <memory>
#include <optional>
#include <utility>

#include "tools/answer_view.h"
#include "tools/command.h"
#include "tools/conversation_json.h"
#include "tools/generation.h"
#include "tools/generation_json.h"
#include "tools/progress_bar.h"
#include "tools/standard_io.h"
#include "tools/talk.h"

namespace stoker::tools {
namespace {

struct GenerateFlags {
  TalkFlags talk;
  std::optional<std::string> prompt;
  std::string prompt_file, messages;
  bool raw = false;
  bool json = false;
};

Result<std::string> prompt_text(const GenerateFlags& flags) {
  if (flags.prompt) return *flags.prompt;
  return read_input(flags.prompt_file);
}

Result<Conversation> conversation_of(const GenerateFlags& flags) {
  Conversation conversation;
  std::vector<ChatMessage>& messages = conversation.messages;
  if (!flags.messages.empty()) {
    ASSIGN_OR_RETURN(SavedConversation saved, read_conversation(flags.messages));
    messages = std::move(saved.messages);
  } else {
    ChatMessage user;
    ASSIGN_OR_RETURN(user.content, prompt_text(flags));
    messages.push_back(std::move(user));
  }
  if (flags.talk.system.empty() && flags.talk.tools.empty()) return conversation;
  if (messages.empty() || messages.front().role != Role::kSystem) {
    ChatMessage system;
    system.role = Role::kSystem;
    messages.insert(messages.begin(), std::move(system));
  }
  if (!flags.talk.system.empty()) messages.front().content = flags.talk.system;
  if (!flags.talk.tools.empty()) {
    ASSIGN_OR_RETURN(messages.front().tools, read_tools(flags.talk.tools));
  }
  return conversation;
}

// The prompt as text, and where its answer starts; empty for --raw.
struct Prompt {
  std::string text;
  std::optional<StreamStart> parse;
};

Result<Prompt> prompt_of(const GenerateFlags& flags, const ChatFormat& format) {
  if (flags.raw) {
    ASSIGN_OR_RETURN(std::string text, prompt_text(flags));
    return Prompt{std::move(text), std::nullopt};
  }
  ASSIGN_OR_RETURN(const Conversation conversation, conversation_of(flags));
  RenderOptions options;
  options.mode = flags.talk.text.mode();
  ASSIGN_OR_RETURN(std::string text, format.render(conversation, options));
  const StreamStart start = stream_start(text);
  return Prompt{std::move(text), start};
}

Result<int> run(const GenerateFlags& flags) {
  ASSIGN_OR_RETURN(const TalkingModel talking, load_talking_model(flags.talk));
  ASSIGN_OR_RETURN(const Prompt prompt, prompt_of(flags, *talking.text->format));
  GenerationRequest request;
  request.prompt = talking.text->tokenizer.encode(prompt.text);
  request.eos = talking.eos;
  request.max_tokens = flags.talk.max_tokens;
  request.parse = prompt.parse;

  SessionTokens source(*talking.model.runner, talking.sampler);
  AnswerView view(isatty(STDOUT_FILENO) == 1, write_output);
  std::optional<ProgressBar> progress(std::in_place, "reading the prompt",
                                      ProgressBar::Unit::kTokens);
  GenerationHooks hooks;
  hooks.on_prefill = [&](std::int64_t done, std::int64_t total) {
    if (done < total) progress->update(done, total);
    if (done == total) progress.reset();
  };
  if (!flags.json) hooks.on_delta = [&](const StreamDelta& delta) { return view.show(delta); };
  ASSIGN_OR_RETURN(const Generation generation,
                   generate(source, talking.text->tokenizer, std::move(request), hooks));
  if (!flags.json) {
    RETURN_IF_ERROR(view.end());
    return 0;
  }
  const JsonValue json = generation_to_json(generation, talking.model.load_seconds,
                                            flags.talk.model.expert_arithmetic);
  RETURN_IF_ERROR(write_output(to_json_text(json) + "\n"));
  return 0;
}

}  // namespace

Command add_generate(CLI::App& program) {
  auto flags = std::make_shared<GenerateFlags>();
  CLI::App* app = program.add_subcommand("generate", "One completion: prompt in, text out");
  add_model_argument(*app, flags->talk.model);
  CLI::Option_group* prompt = app->add_option_group("Prompt", "one of");
  prompt->add_option("--prompt", flags->prompt, "The user's message");
  prompt->add_option("--prompt-file", flags->prompt_file,
                     "The same from a file; -: standard input");
  CLI::Option* messages = prompt->add_option(
      "--messages", flags->messages,
      "A conversation: JSON array of OpenAI messages, tools on the system message; -: standard "
      "input");
  prompt->require_option(1);
  CLI::Option* system = add_system_flag(*app, flags->talk)->excludes(messages);
  CLI::Option* tools = add_tools_flag(*app, flags->talk);
  app->add_flag("--raw", flags->raw, "The prompt as it is: no chat template, no BOS added")
      ->excludes(messages)
      ->excludes(system)
      ->excludes(tools);
  app->add_flag("--json", flags->json,
                "One JSON object at the end: text, reasoning_content, tool_calls, prompt_tokens, "
                "tokens, finish_reason, timings, counters");
  add_talk_flags(*app, flags->talk);
  app->footer(
      "Without --json the text is written as it comes; reasoning is shown on a terminal only.");
  return {app, [flags] { return run(*flags); }};
}

}  // namespace stoker::tools
