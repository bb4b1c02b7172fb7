#include "tools/generation_json.h"

#include <cstdint>
#include <span>
#include <string>
#include <utility>

namespace stoker::tools {
namespace {

JsonValue integer(std::int64_t value) { return JsonValue(JsonInteger{std::to_string(value)}); }

JsonValue ids(std::span<const TokenId> tokens) {
  JsonArray array;
  array.reserve(tokens.size());
  for (const TokenId token : tokens) array.push_back(integer(token));
  return JsonValue(std::move(array));
}

}  // namespace

JsonValue generation_to_json(const Generation& generation, double load_s) {
  const GenerationCounts& counts = generation.counts;
  JsonMembers timings;
  timings.emplace_back("load_s", JsonValue(load_s));
  timings.emplace_back("prefill_s", JsonValue(counts.prefill_s));
  timings.emplace_back("decode_s", JsonValue(counts.decode_s));
  timings.emplace_back("prefill_tok_s", JsonValue(counts.prefill_tok_s()));
  timings.emplace_back("decode_tok_s", JsonValue(counts.decode_tok_s()));
  JsonMembers counters;
  counters.emplace_back("prompt_tokens", integer(counts.prompt_tokens));
  counters.emplace_back("cached_tokens", integer(counts.cached_tokens));
  counters.emplace_back("prefill_tokens", integer(counts.prefill_tokens));
  counters.emplace_back("decode_tokens", integer(counts.decode_tokens));

  const JsonValue message = message_to_json(generation.message);
  JsonMembers members;
  members.emplace_back("text", JsonValue(generation.message.content));
  members.emplace_back("reasoning_content", JsonValue(generation.message.reasoning_content));
  members.emplace_back("tool_calls", *message.find("tool_calls"));
  members.emplace_back("prompt_tokens", ids(generation.prompt));
  members.emplace_back("tokens", ids(generation.tokens));
  members.emplace_back("finish_reason", JsonValue(finish_reason_name(generation.finish)));
  members.emplace_back("timings", JsonValue(std::move(timings)));
  members.emplace_back("counters", JsonValue(std::move(counters)));
  return JsonValue(std::move(members));
}

}  // namespace stoker::tools
