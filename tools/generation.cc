#include "tools/generation.h"

#include <algorithm>
#include <chrono>
#include <string>
#include <utility>

#include "core/text/stream_decoder.h"

namespace stoker::tools {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_between(Clock::time_point begin, Clock::time_point end) {
  return std::chrono::duration<double>(end - begin).count();
}

// Tokens to deltas to a message.
class AnswerBuilder {
 public:
  AnswerBuilder(const Tokenizer& tokenizer, std::optional<StreamStart> parse, ChatMessage& message,
                const GenerationHooks& hooks)
      : decoder_(tokenizer), message_(message), hooks_(hooks) {
    if (parse) parser_.emplace(*parse);
  }

  Status push(TokenId token) { return take(decoder_.push(token)); }

  Status finish() {
    RETURN_IF_ERROR(take(decoder_.flush()));
    if (parser_) {
      parser_->finish(deltas_);
      RETURN_IF_ERROR(emit());
    }
    return {};
  }

 private:
  Status take(std::string text) {
    if (text.empty()) return {};
    if (parser_) {
      parser_->feed(text, deltas_);
    } else {
      deltas_.push_back({StreamDelta::Kind::kContent, -1, std::move(text)});
    }
    return emit();
  }

  Status emit() {
    for (const StreamDelta& delta : deltas_) {
      apply_delta(delta, message_);
      if (hooks_.on_delta) RETURN_IF_ERROR(hooks_.on_delta(delta));
    }
    deltas_.clear();
    return {};
  }

  StreamDecoder decoder_;
  std::optional<StreamParser> parser_;
  std::vector<StreamDelta> deltas_;
  ChatMessage& message_;
  const GenerationHooks& hooks_;
};

Status check_prompt(const GenerationRequest& request, const TokenSource& source) {
  const int context_tokens = source.context_tokens();
  if (request.prompt.empty()) return Error(ErrorCode::kInvalidArgument, "the prompt is empty");
  if (request.prompt.size() <= static_cast<std::size_t>(context_tokens)) return {};
  return make_error(
      ErrorCode::kResource, "the prompt has {} tokens, the context holds {}{}",
      request.prompt.size(), context_tokens,
      source.context_can_grow() ? "; start with a larger --ctx" : ", and the model no more");
}

// How many tokens may follow the prompt. The last one needs no place: it is not computed.
int token_limit(const GenerationRequest& request, int context_tokens) {
  const int room = context_tokens - static_cast<int>(request.prompt.size()) + 1;
  return request.max_tokens > 0 ? std::min(request.max_tokens, room) : room;
}

}  // namespace

std::string_view finish_reason_name(FinishReason reason) {
  switch (reason) {
    case FinishReason::kStop:
      return "stop";
    case FinishReason::kLength:
      return "length";
    case FinishReason::kToolCalls:
      return "tool_calls";
    case FinishReason::kCancelled:
      return "cancelled";
  }
  CHECK(false, "finish reason {}", static_cast<int>(reason));
  return {};
}

GenerationCounts& GenerationCounts::operator+=(const GenerationCounts& other) {
  prompt_tokens += other.prompt_tokens;
  cached_tokens += other.cached_tokens;
  prefill_tokens += other.prefill_tokens;
  decode_tokens += other.decode_tokens;
  prefill_s += other.prefill_s;
  decode_s += other.decode_s;
  prefill_experts += other.prefill_experts;
  decode_experts += other.decode_experts;
  return *this;
}

Result<Generation> generate(TokenSource& source, const Tokenizer& tokenizer,
                            GenerationRequest request, const GenerationHooks& hooks) {
  RETURN_IF_ERROR(check_prompt(request, source));
  const int limit = token_limit(request, source.context_tokens());

  Generation generation;
  generation.message.role = Role::kAssistant;
  generation.finish = FinishReason::kLength;
  AnswerBuilder answer(tokenizer, request.parse, generation.message, hooks);

  source.submit(request.prompt);
  GenerationCounts& counts = generation.counts;
  counts.prompt_tokens = static_cast<int>(request.prompt.size());
  counts.cached_tokens = source.num_cached();
  const LayerCounters experts_before = source.expert_counters();
  LayerCounters experts_first = experts_before;
  const Clock::time_point start = Clock::now();
  Clock::time_point first = start;
  while (static_cast<int>(generation.tokens.size()) < limit) {
    const bool in_prompt = generation.tokens.empty();
    Result<TokenId> token = source.next(hooks.cancel, in_prompt ? hooks.on_prefill : ProgressFn());
    if (!token.ok()) {
      if (token.error().code() != ErrorCode::kCancelled) return std::move(token).error();
      generation.finish = FinishReason::kCancelled;
      break;
    }
    if (in_prompt) {
      first = Clock::now();
      experts_first = source.expert_counters();
    }
    generation.tokens.push_back(*token);
    if (std::find(request.eos.begin(), request.eos.end(), *token) != request.eos.end()) {
      generation.finish = FinishReason::kStop;
      break;
    }
    RETURN_IF_ERROR(answer.push(*token));
  }
  const Clock::time_point end = Clock::now();
  RETURN_IF_ERROR(answer.finish());

  const bool any = !generation.tokens.empty();
  counts.prefill_tokens = any ? counts.prompt_tokens - counts.cached_tokens
                              : source.num_cached() - counts.cached_tokens;
  counts.decode_tokens = any ? static_cast<int>(generation.tokens.size()) - 1 : 0;
  const LayerCounters experts_end = source.expert_counters();
  counts.prefill_experts = (any ? experts_first : experts_end) - experts_before;
  if (any) counts.decode_experts = experts_end - experts_first;
  counts.prefill_s = seconds_between(start, any ? first : end);
  counts.decode_s = any ? seconds_between(first, end) : 0.0;
  if (generation.finish == FinishReason::kStop && !generation.message.tool_calls.empty()) {
    generation.finish = FinishReason::kToolCalls;
  }
  generation.prompt = std::move(request.prompt);
  return generation;
}

}  // namespace stoker::tools
