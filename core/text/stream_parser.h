// Takes an answer apart while it is being written: reasoning, content, tool calls. Forgives what
// models write badly (calls without their block, blocks without end, tags of other generations) and
// never shows a marker. On well-formed text it agrees with ChatFormat::parse(). Time is linear in
// the text.
#pragma once

#include <array>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_set>
#include <vector>

#include "core/text/chat_message.h"
#include "core/text/stream_buffer.h"

namespace stoker {

enum class StreamStart { kContent, kReasoning };

// Where the answer to `prompt` starts: its last thinking tag after the last <｜Assistant｜>
// decides. A parser that does not know would take everything after a tool result for reasoning.
StreamStart stream_start(std::string_view prompt);

struct StreamDelta {
  enum class Kind { kReasoning, kContent, kToolBegin, kToolArguments, kToolEnd };
  Kind kind = Kind::kContent;
  int call_idx = -1;     // kTool...: counts the calls of this answer from 0
  std::string text;      // kToolBegin: the function's name; kToolEnd: empty
  bool complete = true;  // kToolEnd: false if the answer ended inside the call
};

// Adds `delta` to an answer. Deltas applied in their order give the whole message.
void apply_delta(const StreamDelta& delta, ChatMessage& message);

// Not thread-safe. Feed pieces cut anywhere, the end marker included or not, then finish() once.
class StreamParser {
 public:
  explicit StreamParser(StreamStart start);

  // Appends to `out` what is certain by now. Arguments arrive as parts of one JSON object's text.
  void feed(std::string_view piece, std::vector<StreamDelta>& out);

  // Nothing more will come: resolves what was held back and closes an open call. A call whose end
  // is missing still gets arguments that are whole JSON.
  void finish(std::vector<StreamDelta>& out);

  bool saw_end() const { return state_ == State::kDone; }  // the end marker; the rest is ignored
  int num_calls() const { return num_calls_; }

 private:
  enum class State {
    kText,
    kInvokeHead,      // after `<｜DSML｜invoke`
    kInvokeBody,      // between the parameters of a call
    kParameterHead,   // after `<｜DSML｜parameter`
    kParameterValue,  // after the head's '>'
    kLegacyCall,      // after `<｜tool▁call▁begin｜>`
    kDone,
  };
  enum class Tag { kBlock, kInvoke, kParameter, kUnknown, kUndecided };
  struct TagRead {
    Tag kind;
    std::size_t end;  // behind the tag's name
  };

  // What was written into reasoning or content, as far as it matters for later text.
  struct Channel {
    std::string tail;       // the last bytes
    bool has_gap = false;   // a marker was taken out after them
    bool has_text = false;  // anything but white space
  };

  void run();
  bool step();  // false: more text is needed
  bool step_text();
  bool step_invoke_head();
  bool step_invoke_body();
  bool step_parameter_head();
  bool step_parameter_value();
  bool step_legacy_call();

  bool text_marker(const MarkerFinder::Hit& hit, std::size_t newlines_from);
  bool text_tag(const MarkerFinder::Hit& hit, std::size_t newlines_from);
  void open_thinking();
  void skip_after_tag();
  TagRead read_tag(const MarkerFinder::Hit& hit) const;

  void begin_call(std::string_view name);
  void leave_call(bool complete);
  void begin_parameter(std::string_view key);
  void whole_arguments(std::string_view json);
  void emit_value(std::string_view json);
  void emit_text_value(std::string_view text);
  void emit_text(std::string_view text);
  void emit(StreamDelta::Kind kind, std::string_view text);
  void mark_gap();

  StreamBuffer buffer_;
  MarkerFinder text_markers_;  // everything that may not be shown
  MarkerFinder tags_;          // any tag, or the end marker
  MarkerFinder parameter_close_;
  MarkerFinder value_openings_;  // `" string="true">` and its sibling
  MarkerFinder legacy_ends_;

  State state_ = State::kText;
  bool in_reasoning_;
  bool reasoning_used_;  // thinking opens once at most
  bool skip_bracket_ = false;
  bool skip_space_ = false;
  Channel reasoning_, content_;

  int num_calls_ = 0;
  bool call_open_ = false;        // false inside a call without name: nothing is emitted
  bool arguments_whole_ = false;  // they came at once; parameters beside them are ignored
  std::unordered_set<std::string> keys_;
  bool value_is_text_ = false;
  bool value_muted_ = false;  // a key for the second time: the first value stays

  std::vector<StreamDelta>* out_ = nullptr;  // during feed() and finish()
};

}  // namespace stoker
