// Cuts text into the pieces within which BPE merges. Each split pattern cuts the pieces left by the
// one before; matches and the text between them are both kept ("Isolated"). A pattern sees one
// piece at a time, so a lookahead ends where the piece ends.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "core/base/error.h"

namespace stoker {

// Const and shared between threads after create().
class PreTokenizer {
 public:
  enum class Engine { kJit, kInterpreter };
  using Sink = std::function<void(std::string_view piece)>;

  // One thread's room for matching; made per call, cheap.
  class Scratch;

  // `patterns` as tokenizer.json writes them, at most a few dozen. Takes kJit as a wish: where the
  // system forbids making code at run time the interpreter works, about ten times slower.
  static Result<PreTokenizer> create(const std::vector<std::string>& patterns,
                                     Engine engine = Engine::kJit);

  PreTokenizer(PreTokenizer&&) noexcept;
  PreTokenizer& operator=(PreTokenizer&&) noexcept;
  ~PreTokenizer();

  // The engine in use: kJit only if every pattern was compiled.
  Engine engine() const { return engine_; }

  // Calls `sink` for each piece, in order; no piece is empty and together they are `text`. A
  // pattern that gives up (a match limit linear in the piece, which only runaway backtracking
  // reaches) leaves the rest of that piece whole. Requires: `text` is valid UTF-8.
  void split(std::string_view text, const Sink& sink) const;

 private:
  class Pattern;

  PreTokenizer();
  void split_from(std::size_t stage, std::string_view text, Scratch& scratch,
                  const Sink& sink) const;

  std::vector<Pattern> patterns_;
  Engine engine_ = Engine::kInterpreter;
};

}  // namespace stoker
