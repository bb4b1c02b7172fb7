#include "tools/tokenize.h"

#include <fmt/format.h>

#include <charconv>
#include <iostream>
#include <limits>
#include <memory>
#include <vector>

#include "core/text/json_text.h"
#include "tools/command.h"
#include "tools/standard_io.h"
#include "tools/text_model.h"

namespace stoker::tools {
namespace {

struct TokenizeFlags {
  std::string model;
  bool decode = false;
};

Result<std::string> encode_line(const Tokenizer& tokenizer, std::string_view line) {
  ASSIGN_OR_RETURN(const JsonValue json, parse_json(line));
  const std::string* text = json.if_string();
  if (text == nullptr) {
    return make_error(ErrorCode::kInvalidArgument, "expected a JSON string, found {}",
                      json.kind_name());
  }
  return fmt::format("[{}]", fmt::join(tokenizer.encode(*text), ", "));
}

Result<TokenId> token_of(const JsonValue& json, std::size_t index) {
  const JsonInteger* integer = json.if_integer();
  if (integer == nullptr) {
    return make_error(ErrorCode::kInvalidArgument, "[{}]: expected a token id, found {}", index,
                      json.kind_name());
  }
  TokenId id = -1;
  const char* const end = integer->digits.data() + integer->digits.size();
  const auto [stop, error] = std::from_chars(integer->digits.data(), end, id);
  if (error != std::errc() || stop != end || id < 0) {
    return make_error(ErrorCode::kInvalidArgument, "[{}]: {} is no token id (0 to {})", index,
                      integer->digits, std::numeric_limits<TokenId>::max());
  }
  return id;
}

Result<std::string> decode_line(const Tokenizer& tokenizer, std::string_view line) {
  ASSIGN_OR_RETURN(const JsonValue json, parse_json(line));
  const JsonArray* array = json.if_array();
  if (array == nullptr) {
    return make_error(ErrorCode::kInvalidArgument, "expected a JSON array of token ids, found {}",
                      json.kind_name());
  }
  std::vector<TokenId> tokens(array->size());
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    ASSIGN_OR_RETURN(tokens[i], token_of((*array)[i], i));
  }
  std::string out;
  append_json_string(out, tokenizer.decode(tokens, SpecialTokens::kKeep));
  return out;
}

Result<int> run(const TokenizeFlags& flags) {
  ASSIGN_OR_RETURN(const Tokenizer tokenizer, load_tokenizer(flags.model));
  std::string line;
  while (read_line(std::cin, line)) {
    RETURN_IF_ERROR(write_output(tokenize_line(tokenizer, line, flags.decode) + "\n"));
  }
  return 0;
}

}  // namespace

std::string tokenize_line(const Tokenizer& tokenizer, std::string_view line, bool decode) {
  const Result<std::string> answer =
      decode ? decode_line(tokenizer, line) : encode_line(tokenizer, line);
  if (answer.ok()) return *answer;
  JsonMembers refused;
  refused.emplace_back("error", JsonValue(answer.error().message()));
  return to_json_text(JsonValue(std::move(refused)));
}

Command add_tokenize(CLI::App& program) {
  auto flags = std::make_shared<TokenizeFlags>();
  CLI::App* app = program.add_subcommand(
      "tokenize",
      "Standard input: one JSON string a line; standard output: its token ids as a JSON array");
  add_text_directory(*app, flags->model);
  app->add_flag("--decode", flags->decode,
                "The other way: arrays of ids in, JSON strings out, special tokens kept");
  app->footer("A refused line is answered with {\"error\": \"...\"}; the exit status stays 0.");
  return {app, [flags] { return run(*flags); }};
}

}  // namespace stoker::tools
