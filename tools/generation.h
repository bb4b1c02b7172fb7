// The token loop: a prompt goes in, text comes out piece by piece.
#pragma once

#include <functional>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "core/base/cancel.h"
#include "core/base/error.h"
#include "core/base/progress.h"
#include "core/interface/expert_provider.h"
#include "core/text/chat_message.h"
#include "core/text/stream_parser.h"
#include "core/text/tokenizer.h"
#include "tools/token_source.h"

namespace stoker::tools {

enum class FinishReason {
  kStop,       // the model ended its answer
  kLength,     // the limit, or the end of the context
  kToolCalls,  // the model ended its answer and waits for results
  kCancelled,  // by the cancel token
};
std::string_view finish_reason_name(FinishReason reason);

struct GenerationCounts {
  int prompt_tokens = 0;
  int cached_tokens = 0;   // of the prompt: kept from before
  int prefill_tokens = 0;  // of the prompt: computed
  int decode_tokens = 0;   // steps after the first sampled token
  double prefill_s = 0.0;  // until the first token
  double decode_s = 0.0;
  LayerCounters prefill_experts, decode_experts;

  double prefill_tok_s() const { return prefill_s > 0.0 ? prefill_tokens / prefill_s : 0.0; }
  double decode_tok_s() const { return decode_s > 0.0 ? decode_tokens / decode_s : 0.0; }
  GenerationCounts& operator+=(const GenerationCounts& other);
};

struct Generation {
  ChatMessage message;  // the assistant's
  std::vector<TokenId> prompt;
  std::vector<TokenId> tokens;  // EOS included
  FinishReason finish = FinishReason::kStop;
  GenerationCounts counts;
};

struct GenerationRequest {
  std::vector<TokenId> prompt;
  std::span<const TokenId> eos;
  int max_tokens = 0;                // 0: as many as the context holds
  std::optional<StreamStart> parse;  // empty: everything is content, markers too
};

// What a caller sees and does while an answer is made. Everything may be left empty.
struct GenerationHooks {
  // An error ends the generation with that error.
  std::function<Status(const StreamDelta&)> on_delta;
  ProgressFn on_prefill;  // prompt tokens computed, of those to compute
  const CancelToken* cancel = nullptr;
};

// Cancelling is no error: what was made so far is returned. A prompt that is empty or does not fit
// the context is refused before anything is computed.
Result<Generation> generate(TokenSource& source, const Tokenizer& tokenizer,
                            GenerationRequest request, const GenerationHooks& hooks = {});

}  // namespace stoker::tools
