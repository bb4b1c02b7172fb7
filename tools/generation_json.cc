#include "tools/generation_json.h"

#include <utility>

#include "tools/expert_stats.h"
#include "tools/json_object.h"

namespace stoker::tools {

JsonValue generation_to_json(const Generation& generation, double load_s,
                             std::string_view expert_arithmetic) {
  const GenerationCounts& counts = generation.counts;
  JsonObject timings;
  timings.add("load_s", load_s)
      .add("prefill_s", counts.prefill_s)
      .add("decode_s", counts.decode_s)
      .add("prefill_tok_s", counts.prefill_tok_s())
      .add("decode_tok_s", counts.decode_tok_s());
  JsonObject counters;
  counters.add("prompt_tokens", counts.prompt_tokens)
      .add("cached_tokens", counts.cached_tokens)
      .add("prefill_tokens", counts.prefill_tokens)
      .add("decode_tokens", counts.decode_tokens);
  for (const auto& [name, experts] : {std::pair("prefill_experts", &counts.prefill_experts),
                                      {"decode_experts", &counts.decode_experts}}) {
    JsonObject object;
    add_counters(object, *experts);
    counters.add(name, std::move(object));
  }
  counters.add("expert_arithmetic", expert_arithmetic);

  const JsonValue message = message_to_json(generation.message);
  JsonObject object;
  object.add("text", generation.message.content)
      .add("reasoning_content", generation.message.reasoning_content)
      .add("tool_calls", *message.find("tool_calls"))
      .add("prompt_tokens", json_array(generation.prompt))
      .add("tokens", json_array(generation.tokens))
      .add("finish_reason", finish_reason_name(generation.finish))
      .add("timings", std::move(timings))
      .add("counters", std::move(counters));
  return std::move(object).build();
}

}  // namespace stoker::tools
