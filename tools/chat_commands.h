// The /commands of `stoker chat`.
#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "core/base/error.h"
#include "tools/chat_session.h"

namespace stoker::tools {

struct ChatCommand {
  std::string name;      // without the slash
  std::string argument;  // the rest, without white space around it
};

// A line is a command if it begins with a slash and a word of letters: "/think on", but neither
// "/usr/bin" nor "/* text".
std::optional<ChatCommand> parse_chat_command(std::string_view line);

enum class ChatAction {
  kNone,
  kAnswer,  // tool results are complete: the model is to go on
  kQuit,
};

struct ChatReply {
  std::string text;  // for the user; may be empty
  ChatAction action = ChatAction::kNone;
};

// Errors say what to do; the conversation is then as it was.
Result<ChatReply> run_chat_command(ChatSession& session, const ChatCommand& command);

}  // namespace stoker::tools
