#include "tools/chat_commands.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <utility>

#include "tools/expert_stats.h"
#include "tools/text_model.h"

namespace stoker::tools {
namespace {

using Run = Result<ChatReply> (*)(ChatSession&, const std::string&);

struct Entry {
  std::string_view name, argument, help;
  Run run;
};

ChatReply said(std::string text) { return {std::move(text), ChatAction::kNone}; }

Result<ChatReply> help(ChatSession& session, const std::string& argument);

Result<ChatReply> think(ChatSession& session, const std::string& argument) {
  if (argument != "on" && argument != "off" && !argument.empty()) {
    return Error(ErrorCode::kInvalidArgument, "write /think on or /think off");
  }
  if (!argument.empty()) RETURN_IF_ERROR(session.set_thinking(argument == "on"));
  return said(fmt::format("thinking is {}", session.thinking() ? "on" : "off"));
}

Result<ChatReply> system(ChatSession& session, const std::string& argument) {
  if (argument == "off") {
    RETURN_IF_ERROR(session.set_system(""));
    return said("no system message");
  }
  if (!argument.empty()) RETURN_IF_ERROR(session.set_system(argument));
  if (session.system().empty()) return said("no system message");
  return said(fmt::format("system message: {}", session.system()));
}

Result<ChatReply> stats(ChatSession& session, const std::string& /*argument*/) {
  const ChatTotals& totals = session.totals();
  const GenerationCounts& counts = totals.counts;
  std::string experts = describe_counters(counts.decode_experts, counts.decode_s);
  if (!experts.empty()) experts = "\nexperts   " + experts + " in decode";
  return said(fmt::format(
      "context   {} of {} tokens\nanswers   {}\nprefill   {} tokens in {:.1f} s, {:.1f} tok/s; "
      "{} more kept from before\ndecode    {} tokens in {:.1f} s, {:.1f} tok/s{}",
      totals.context_used, session.context_tokens(), totals.answers, counts.prefill_tokens,
      counts.prefill_s, counts.prefill_tok_s(), counts.cached_tokens, counts.decode_tokens,
      counts.decode_s, counts.decode_tok_s(), experts));
}

Result<ChatReply> save(ChatSession& session, const std::string& argument) {
  if (argument.empty()) return Error(ErrorCode::kInvalidArgument, "write /save FILE");
  RETURN_IF_ERROR(write_conversation(session.saved(), argument));
  return said(fmt::format("saved {} messages to {}", session.messages().size(), argument));
}

Result<ChatReply> load(ChatSession& session, const std::string& argument) {
  if (argument.empty()) return Error(ErrorCode::kInvalidArgument, "write /load FILE");
  ASSIGN_OR_RETURN(SavedConversation conversation, read_conversation(argument));
  RETURN_IF_ERROR(session.load(std::move(conversation)), "{}", argument);
  return said(fmt::format("loaded {} messages from {}", session.messages().size(), argument));
}

Result<ChatReply> reset(ChatSession& session, const std::string& /*argument*/) {
  session.reset();
  return said("a new conversation, with the same settings");
}

Result<ChatReply> undo(ChatSession& session, const std::string& /*argument*/) {
  if (!session.undo()) return Error(ErrorCode::kInvalidArgument, "there is nothing to take back");
  return said("your last message and what followed it are taken back");
}

Result<ChatReply> tools(ChatSession& session, const std::string& argument) {
  if (argument == "off") {
    RETURN_IF_ERROR(session.set_tools({}));
  } else if (!argument.empty()) {
    ASSIGN_OR_RETURN(std::vector<JsonValue> functions, read_tools(argument));
    RETURN_IF_ERROR(session.set_tools(std::move(functions)));
  }
  if (session.num_tools() == 0) return said("no tools");
  return said(fmt::format("{} tools on offer", session.num_tools()));
}

Result<ChatReply> tool(ChatSession& session, const std::string& argument) {
  if (session.awaited_call() == nullptr) {
    return Error(ErrorCode::kInvalidArgument, "no tool call waits for a result");
  }
  session.give_tool_result(argument);
  return ChatReply{"", session.awaited_call() == nullptr ? ChatAction::kAnswer : ChatAction::kNone};
}

Result<ChatReply> quit(ChatSession& /*session*/, const std::string& /*argument*/) {
  return ChatReply{"", ChatAction::kQuit};
}

constexpr std::array kCommands = {
    Entry{"help", "", "this list", help},
    Entry{"think", "on|off", "let the model reason before it answers", think},
    Entry{"system", "TEXT|off", "what the model is told before everything else", system},
    Entry{"tools", "FILE|off", "offer tools: a JSON array of OpenAI functions", tools},
    Entry{"tool", "RESULT", "the result of the tool call shown last (or simply write it)", tool},
    Entry{"stats", "", "tokens and speeds of this conversation", stats},
    Entry{"save", "FILE", "write the conversation as JSON", save},
    Entry{"load", "FILE", "go on with a saved conversation", load},
    Entry{"undo", "", "take your last message and what followed it back", undo},
    Entry{"reset", "", "begin a new conversation", reset},
    Entry{"quit", "", "leave (so does Ctrl-D)", quit},
};

Result<ChatReply> help(ChatSession& /*session*/, const std::string& /*argument*/) {
  std::string text;
  for (const Entry& entry : kCommands) {
    text +=
        fmt::format("{:<18} {}\n", fmt::format("/{} {}", entry.name, entry.argument), entry.help);
  }
  text +=
      "A backslash at the end of a line, or Alt-Enter, continues the message on the next line;\n"
      "pasted text may have several lines. Ctrl-C stops an answer.";
  return said(std::move(text));
}

bool is_letter(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'); }

std::string_view trimmed(std::string_view text) {
  constexpr std::string_view kSpace = " \t\r\n";
  const std::size_t begin = text.find_first_not_of(kSpace);
  if (begin == std::string_view::npos) return {};
  return text.substr(begin, text.find_last_not_of(kSpace) + 1 - begin);
}

}  // namespace

std::optional<ChatCommand> parse_chat_command(std::string_view line) {
  if (line.empty() || line.front() != '/') return std::nullopt;
  std::size_t end = 1;
  while (end < line.size() && is_letter(line[end])) ++end;
  const bool word =
      end > 1 && (end == line.size() || line[end] == ' ' || line[end] == '\n' || line[end] == '\t');
  if (!word) return std::nullopt;
  return ChatCommand{std::string(line.substr(1, end - 1)), std::string(trimmed(line.substr(end)))};
}

Result<ChatReply> run_chat_command(ChatSession& session, const ChatCommand& command) {
  const auto entry = std::find_if(kCommands.begin(), kCommands.end(), [&](const Entry& candidate) {
    return candidate.name == command.name;
  });
  if (entry == kCommands.end()) {
    return make_error(ErrorCode::kInvalidArgument, "there is no /{}; /help lists the commands",
                      command.name);
  }
  return entry->run(session, command.argument);
}

}  // namespace stoker::tools
