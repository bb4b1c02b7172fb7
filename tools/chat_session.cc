#include "tools/chat_session.h"

#include <algorithm>
#include <utility>

namespace stoker::tools {
namespace {

ChatMessage message_of(Role role, std::string content) {
  ChatMessage message;
  message.role = role;
  message.content = std::move(content);
  return message;
}

bool says_something(const ChatMessage& system) {
  return !system.content.empty() || !system.tools.empty() || system.response_format.is_truthy();
}

}  // namespace

ChatSession::ChatSession(const TextModel& text, TokenSource& source, std::vector<TokenId> eos,
                         int max_tokens)
    : text_(text), source_(source), eos_(std::move(eos)), max_tokens_(max_tokens) {
  system_.role = Role::kSystem;
}

Conversation ChatSession::conversation() const {
  Conversation conversation;
  if (says_something(system_)) conversation.messages.push_back(system_);
  conversation.messages.insert(conversation.messages.end(), messages_.begin(), messages_.end());
  return conversation;
}

Status ChatSession::check(const ChatMessage& system, std::vector<ChatMessage> messages,
                          ThinkingMode mode) const {
  Conversation conversation;
  if (says_something(system)) conversation.messages.push_back(system);
  conversation.messages.insert(conversation.messages.end(),
                               std::make_move_iterator(messages.begin()),
                               std::make_move_iterator(messages.end()));
  conversation.messages.push_back(message_of(Role::kUser, "?"));
  RenderOptions options;
  options.mode = mode;
  Result<std::string> prompt = text_.format->render(conversation, options);
  return prompt.ok() ? Status() : Status(std::move(prompt).error());
}

Status ChatSession::set_thinking(bool on) {
  const ThinkingMode mode = on ? ThinkingMode::kThinking : ThinkingMode::kChat;
  RETURN_IF_ERROR(check(system_, {}, mode));
  mode_ = mode;
  return {};
}

Status ChatSession::set_system(std::string text) {
  ChatMessage system = system_;
  system.content = std::move(text);
  RETURN_IF_ERROR(check(system, {}, mode_));
  system_ = std::move(system);
  return {};
}

Status ChatSession::set_tools(std::vector<JsonValue> functions) {
  ChatMessage system = system_;
  system.tools = std::move(functions);
  RETURN_IF_ERROR(check(system, {}, mode_));
  system_ = std::move(system);
  return {};
}

Result<Generation> ChatSession::ask(std::string text, const GenerationHooks& hooks) {
  CHECK(awaited_call() == nullptr, "a tool result is awaited");
  const std::size_t num_before = messages_.size();
  messages_.push_back(message_of(Role::kUser, std::move(text)));
  return answer(num_before, hooks);
}

const ToolCall* ChatSession::awaited_call() const {
  std::size_t num_results = 0;
  for (auto message = messages_.rbegin(); message != messages_.rend(); ++message) {
    if (message->role == Role::kTool) {
      ++num_results;
      continue;
    }
    const bool open = message->role == Role::kAssistant && num_results < message->tool_calls.size();
    return open ? &message->tool_calls[num_results] : nullptr;
  }
  return nullptr;
}

void ChatSession::give_tool_result(std::string text) {
  const ToolCall* const call = awaited_call();
  CHECK(call != nullptr, "no tool result is awaited");
  ChatMessage result = message_of(Role::kTool, std::move(text));
  result.tool_call_id = call->id;
  messages_.push_back(std::move(result));
}

Result<Generation> ChatSession::answer_to_results(const GenerationHooks& hooks) {
  CHECK(!messages_.empty() && messages_.back().role == Role::kTool && awaited_call() == nullptr,
        "results are missing");
  return answer(messages_.size() - 1, hooks);
}

Result<Generation> ChatSession::answer(std::size_t num_before, const GenerationHooks& hooks) {
  Result<Generation> generation = generate_answer(hooks);
  if (!generation.ok()) {
    messages_.resize(num_before);
    return generation;
  }
  // An answer that was cut off asks for nothing: its calls may lack their end.
  if (generation->finish != FinishReason::kToolCalls) generation->message.tool_calls.clear();
  totals_.answers += 1;
  totals_.counts += generation->counts;
  totals_.context_used = static_cast<int>(generation->prompt.size() + generation->tokens.size());
  const ChatMessage& message = generation->message;
  if (generation->finish == FinishReason::kCancelled && message.content.empty() &&
      message.reasoning_content.empty()) {
    messages_.resize(num_before);
  } else {
    messages_.push_back(message);
  }
  return generation;
}

Result<Generation> ChatSession::generate_answer(const GenerationHooks& hooks) {
  RenderOptions options;
  options.mode = mode_;
  ASSIGN_OR_RETURN(const std::string prompt, text_.format->render(conversation(), options));
  GenerationRequest request;
  request.prompt = text_.tokenizer.encode(prompt);
  request.eos = eos_;
  request.max_tokens = max_tokens_;
  request.parse = stream_start(prompt);
  return generate(source_, text_.tokenizer, std::move(request), hooks);
}

bool ChatSession::undo() {
  const auto last = std::find_if(messages_.rbegin(), messages_.rend(), [](const ChatMessage& m) {
    return m.role == Role::kUser || m.role == Role::kDeveloper;
  });
  if (last == messages_.rend()) return false;
  messages_.erase(std::prev(last.base()), messages_.end());
  return true;
}

SavedConversation ChatSession::saved() const { return {conversation().messages, thinking()}; }

Status ChatSession::load(SavedConversation conversation) {
  std::vector<ChatMessage>& messages = conversation.messages;
  ChatMessage system;
  system.role = Role::kSystem;
  if (!messages.empty() && messages.front().role == Role::kSystem) {
    system = std::move(messages.front());
    messages.erase(messages.begin());
  }
  if (!messages.empty() && messages.back().role == Role::kUser) {
    return Error(ErrorCode::kInvalidArgument,
                 "the conversation ends with a user's message that has no answer; take it out and "
                 "send it again here");
  }
  const ThinkingMode mode =
      conversation.thinking.value_or(thinking()) ? ThinkingMode::kThinking : ThinkingMode::kChat;
  RETURN_IF_ERROR(check(system, messages, mode));
  system_ = std::move(system);
  messages_ = std::move(messages);
  mode_ = mode;
  return {};
}

}  // namespace stoker::tools
