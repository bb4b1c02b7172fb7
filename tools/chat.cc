// stoker chat: a conversation in a terminal, or line by line through pipes.

#include <fmt/format.h>
#include <unistd.h>

#include <atomic>
#include <csignal>
#include <cstdio>
#include <iostream>
#include <memory>
#include <optional>
#include <utility>

#include "core/text/utf8.h"
#include "tools/answer_view.h"
#include "tools/chat_commands.h"
#include "tools/chat_session.h"
#include "tools/command.h"
#include "tools/expert_stats.h"
#include "tools/line_editor.h"
#include "tools/progress_bar.h"
#include "tools/standard_io.h"
#include "tools/talk.h"

namespace stoker::tools {
namespace {

// While it lives, Ctrl-C sets `token` instead of ending the program.
class InterruptScope {
 public:
  explicit InterruptScope(CancelToken& token) {
    current_.store(&token);
    struct sigaction action = {};
    action.sa_handler = [](int) {
      if (CancelToken* const target = current_.load()) target->cancel();
    };
    action.sa_flags = SA_RESTART;
    sigemptyset(&action.sa_mask);
    sigaction(SIGINT, &action, &before_);
  }
  ~InterruptScope() {
    sigaction(SIGINT, &before_, nullptr);
    current_.store(nullptr);
  }
  InterruptScope(const InterruptScope&) = delete;
  InterruptScope& operator=(const InterruptScope&) = delete;

 private:
  // A signal handler gets no context: this is the one way to reach the token.
  static inline std::atomic<CancelToken*> current_{nullptr};
  struct sigaction before_ = {};
};

class Chat {
 public:
  Chat(ChatSession& session, const LoadedModel& model, bool interactive)
      : session_(session), model_(model), interactive_(interactive) {}

  Status run_interactive(const std::string& welcome);
  // False if a turn failed.
  Result<bool> run_piped();

 private:
  // Takes one message of the user, or a tool result, and shows the answer if one is due.
  Status take(const std::string& text);
  // Shows an answer. What goes wrong with the turn is said; only a lost output ends the program.
  template <typename Make>
  Status answer(const Make& make);
  Status run_command(const ChatCommand& command);
  void say_error(const Error& error);
  void show_status(const Generation& generation);
  std::string prompt() const;

  ChatSession& session_;
  const LoadedModel& model_;
  bool interactive_;
  CancelToken cancel_;  // of the answer being made
  bool failed_ = false;
  bool quit_ = false;
  const bool stdout_is_terminal_ = isatty(STDOUT_FILENO) == 1;
  const bool stderr_is_terminal_ = isatty(STDERR_FILENO) == 1;
};

void Chat::say_error(const Error& error) {
  failed_ = true;
  std::fflush(stdout);
  const char* const hint =
      error.code() == ErrorCode::kResource && interactive_ ? " (or /undo, /reset)" : "";
  fmt::print(stderr, "stoker: {}{}\n", error.message(), hint);
}

void Chat::show_status(const Generation& generation) {
  if (!stderr_is_terminal_) return;
  const GenerationCounts& counts = generation.counts;
  const char* end = "";
  if (generation.finish == FinishReason::kCancelled) end = "stopped; ";
  if (generation.finish == FinishReason::kLength) end = "cut off at the limit; ";
  std::string experts = describe_counters(counts.decode_experts, counts.decode_s);
  if (!experts.empty()) experts = "; " + experts;
  fmt::print(stderr,
             "\033[2m[{}{} tokens; prefill {} tokens, {:.1f} tok/s; decode {:.1f} tok/s{}; context "
             "{}/{}]\033[0m\n",
             end, generation.tokens.size(), counts.prefill_tokens, counts.prefill_tok_s(),
             counts.decode_tok_s(), experts, session_.totals().context_used,
             session_.context_tokens());
}

template <typename Make>
Status Chat::answer(const Make& make) {
  cancel_.reset();
  AnswerView view(stdout_is_terminal_, write_output);
  std::optional<ProgressBar> progress(std::in_place, "reading the prompt",
                                      ProgressBar::Unit::kTokens);
  Status output;
  GenerationHooks hooks;
  hooks.cancel = &cancel_;
  hooks.on_delta = [&](const StreamDelta& delta) { return output = view.show(delta); };
  hooks.on_prefill = [&](std::int64_t done, std::int64_t total) {
    if (done < total) progress->update(done, total);
    if (done == total) progress.reset();
  };
  const Result<Generation> generation = make(hooks);
  progress.reset();
  RETURN_IF_ERROR(std::move(output));
  RETURN_IF_ERROR(view.end());
  model_.say_notices();
  if (generation.ok()) {
    show_status(*generation);
  } else {
    say_error(generation.error());
  }
  return {};
}

Status Chat::take(const std::string& text) {
  if (session_.awaited_call() != nullptr) {
    session_.give_tool_result(text);
    if (session_.awaited_call() != nullptr) return {};
    return answer([&](const GenerationHooks& hooks) { return session_.answer_to_results(hooks); });
  }
  return answer([&](const GenerationHooks& hooks) { return session_.ask(text, hooks); });
}

Status Chat::run_command(const ChatCommand& command) {
  Result<ChatReply> reply = run_chat_command(session_, command);
  if (!reply.ok()) {
    say_error(reply.error());
    return {};
  }
  if (!reply->text.empty()) RETURN_IF_ERROR(write_output(reply->text + "\n"));
  if (reply->action == ChatAction::kQuit) quit_ = true;
  if (reply->action != ChatAction::kAnswer) return {};
  return answer([&](const GenerationHooks& hooks) { return session_.answer_to_results(hooks); });
}

std::string Chat::prompt() const {
  const ToolCall* const call = session_.awaited_call();
  return call == nullptr ? "> " : fmt::format("result of {}> ", without_controls(call->name));
}

Status Chat::run_interactive(const std::string& welcome) {
  // From here on, not only during answers: Ctrl-C pressed once too often must not end the program.
  const InterruptScope interrupts(cancel_);
  std::FILE* const screen = stdout_is_terminal_ ? stdout : stderr;
  LineEditor editor(stdin, screen, default_history_file());
  fmt::print(screen, "{}\n", welcome);
  bool may_leave = false;  // Ctrl-C was the last thing typed
  while (!quit_) {
    const LineEditor::Input input = editor.read(prompt());
    if (input.outcome == LineEditor::Outcome::kEnd) break;
    if (input.outcome == LineEditor::Outcome::kInterrupted) {
      if (input.text.empty() && may_leave) break;
      may_leave = input.text.empty();
      if (may_leave) fmt::print(screen, "Ctrl-C again or Ctrl-D leaves\n");
      continue;
    }
    may_leave = false;
    if (input.text.find_first_not_of(" \t\n") == std::string::npos) continue;
    if (const std::optional<ChatCommand> command = parse_chat_command(input.text)) {
      RETURN_IF_ERROR(run_command(*command));
    } else {
      RETURN_IF_ERROR(take(input.text));
    }
  }
  return {};
}

Result<bool> Chat::run_piped() {
  std::string line;
  while (read_line(std::cin, line)) {
    if (line.find_first_not_of(" \t") == std::string::npos) continue;
    RETURN_IF_ERROR(take(to_valid_utf8(line)));
  }
  return !failed_;
}

Result<int> run(const TalkFlags& flags) {
  std::vector<JsonValue> tools;
  if (!flags.tools.empty()) {
    ASSIGN_OR_RETURN(tools, read_tools(flags.tools));
  }
  ASSIGN_OR_RETURN(const TalkingModel talking, load_talking_model(flags));
  SessionTokens source(*talking.model.runner, talking.sampler);
  ChatSession session(*talking.text, source, talking.eos, flags.max_tokens);
  RETURN_IF_ERROR(session.set_system(flags.system));
  RETURN_IF_ERROR(session.set_tools(std::move(tools)), "--tools");
  RETURN_IF_ERROR(session.set_thinking(flags.text.thinking == "on"), "--thinking on");

  const bool interactive = isatty(STDIN_FILENO) == 1;
  Chat chat(session, talking.model, interactive);
  if (!interactive) {
    ASSIGN_OR_RETURN(const bool all_answered, chat.run_piped());
    return all_answered ? 0 : 1;
  }
  const std::string name = talking.model.directory.lexically_normal().filename().string();
  RETURN_IF_ERROR(chat.run_interactive(fmt::format(
      "{}: loaded in {:.1f} s, {} tokens of context. /help lists the commands.",
      name.empty() ? "The model" : name, talking.model.load_seconds, source.context_tokens())));
  return 0;
}

}  // namespace

Command add_chat(CLI::App& program) {
  auto flags = std::make_shared<TalkFlags>();
  CLI::App* app =
      program.add_subcommand("chat", "Talk with the model, in a terminal or through pipes");
  add_model_argument(*app, flags->model);
  add_system_flag(*app, *flags);
  add_tools_flag(*app, *flags);
  add_talk_flags(*app, *flags);
  app->footer(
      "In a terminal /help lists the commands; Ctrl-C stops an answer, Ctrl-D leaves. With "
      "standard\n"
      "input from a pipe or a file every line that is not blank is a message (or, after a tool\n"
      "call, its result), and standard output carries the answers and nothing else.");
  return {app, [flags] { return run(*flags); }};
}

}  // namespace stoker::tools
