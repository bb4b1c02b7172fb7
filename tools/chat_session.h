// A conversation with a model, without a terminal: turns, tools, settings, what is kept of an
// answer.
#pragma once

#include <string>
#include <vector>

#include "core/base/error.h"
#include "tools/conversation_json.h"
#include "tools/generation.h"
#include "tools/text_model.h"

namespace stoker::tools {

struct ChatTotals {
  int answers = 0;
  GenerationCounts counts;  // over all answers
  int context_used = 0;     // tokens of the last prompt and its answer
};

class ChatSession {
 public:
  // `text` and `source` must outlive this. `max_tokens`: of one answer; 0: as many as the context
  // holds.
  ChatSession(const TextModel& text, TokenSource& source, std::vector<TokenId> eos,
              int max_tokens = 0);

  // Settings count from the next answer on. What the model's chat format cannot express is an
  // error, and changes nothing.
  Status set_thinking(bool on);
  Status set_system(std::string text);
  Status set_tools(std::vector<JsonValue> functions);
  bool thinking() const { return mode_ == ThinkingMode::kThinking; }
  const std::string& system() const { return system_.content; }
  std::size_t num_tools() const { return system_.tools.size(); }

  // The user's turn and the answer to it. On error, and when cancelled before any text came, the
  // conversation is as it was. Requires: awaited_call() is null.
  Result<Generation> ask(std::string text, const GenerationHooks& hooks = {});

  // The first call of the last answer that has no result yet; null: the user is to speak.
  const ToolCall* awaited_call() const;
  // Its result. Requires: awaited_call() is not null.
  void give_tool_result(std::string text);
  // The answer to results just given; the same promises as ask(), and the last result is taken back
  // with it. Requires: results were given, and all of them.
  Result<Generation> answer_to_results(const GenerationHooks& hooks = {});

  // Takes the last user's message back and everything after it. False if there is none.
  bool undo();
  // A new conversation with the same settings.
  void reset() { messages_.clear(); }

  const std::vector<ChatMessage>& messages() const { return messages_; }  // without the system's
  SavedConversation saved() const;
  // On error nothing changed.
  Status load(SavedConversation conversation);

  const ChatTotals& totals() const { return totals_; }
  int context_tokens() const { return source_.context_tokens(); }

 private:
  Conversation conversation() const;
  // Whether the format can express the settings, with a turn of the user after `messages`.
  Status check(const ChatMessage& system, std::vector<ChatMessage> messages,
               ThinkingMode mode) const;
  // Answers the conversation as it stands; without an answer it is cut back to `num_before`.
  Result<Generation> answer(std::size_t num_before, const GenerationHooks& hooks);
  Result<Generation> generate_answer(const GenerationHooks& hooks);

  const TextModel& text_;
  TokenSource& source_;
  std::vector<TokenId> eos_;
  int max_tokens_;
  ThinkingMode mode_ = ThinkingMode::kChat;
  ChatMessage system_;
  std::vector<ChatMessage> messages_;
  ChatTotals totals_;
};

}  // namespace stoker::tools
