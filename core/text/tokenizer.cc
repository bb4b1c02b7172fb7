#include "core/text/tokenizer.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <functional>
#include <memory>
#include <system_error>
#include <utility>

#include "core/text/byte_alphabet.h"
#include "core/text/tokenizer_json.h"
#include "core/text/utf8.h"

namespace stoker {
namespace {

constexpr std::string_view kBosContent = "<｜begin▁of▁sentence｜>";
constexpr std::string_view kEosContent = "<｜end▁of▁sentence｜>";

Result<std::string> read_file(const std::string& path) {
  const auto close = [](std::FILE* file) { std::fclose(file); };
  const std::unique_ptr<std::FILE, decltype(close)> file(std::fopen(path.c_str(), "rb"), close);
  if (file == nullptr) {
    const ErrorCode code = errno == ENOENT ? ErrorCode::kNotFound : ErrorCode::kIo;
    return make_error(code, "cannot open {}: {}", path, std::strerror(errno));
  }
  std::string text;
  std::array<char, 1 << 16> block;
  while (const std::size_t n = std::fread(block.data(), 1, block.size(), file.get())) {
    text.append(block.data(), n);
  }
  if (std::ferror(file.get())) {
    return make_error(ErrorCode::kIo, "cannot read {}: {}", path, std::strerror(errno));
  }
  return text;
}

// Bytes that no valid UTF-8 contains need no token.
bool occurs_in_utf8(int byte) { return byte != 0xC0 && byte != 0xC1 && byte < 0xF5; }

Result<std::array<TokenId, 256>> find_byte_tokens(const Vocabulary& vocabulary) {
  std::array<TokenId, 256> tokens;
  for (int byte = 0; byte < 256; ++byte) {
    const char c = static_cast<char>(byte);
    const auto id = vocabulary.find_spelling(bytes_to_spelling(std::string_view(&c, 1)));
    if (!id && occurs_in_utf8(byte)) {
      return make_error(ErrorCode::kUnsupported, "model.vocab has no token for the byte {:#04x}",
                        byte);
    }
    tokens[byte] = id.value_or(Bpe::kNoToken);
  }
  return tokens;
}

Result<std::vector<Merge>> resolve_merges(const TokenizerJson& json, const Vocabulary& vocabulary) {
  std::vector<Merge> merges;
  merges.reserve(json.merges_left.size());
  std::string merged;
  for (std::size_t i = 0; i < json.merges_left.size(); ++i) {
    const std::string_view left = json.merges_left[i], right = json.merges_right[i];
    if (left.empty() || right.empty()) {
      return make_error(ErrorCode::kCorrupt, "model.merges[{}] has an empty side", i);
    }
    merged.assign(left).append(right);
    const auto left_id = vocabulary.find_spelling(left);
    const auto right_id = vocabulary.find_spelling(right);
    const auto merged_id = vocabulary.find_spelling(merged);
    if (!left_id || !right_id || !merged_id) {
      return make_error(ErrorCode::kCorrupt, "model.merges[{}]: {} is not in model.vocab", i,
                        !left_id    ? "the left token"
                        : !right_id ? "the right token"
                                    : "the result");
    }
    merges.push_back({*left_id, *right_id, *merged_id});
  }
  return merges;
}

// Encodes the pieces of one text. Most pieces were seen before: a table of fixed size says where,
// and their tokens are copied from the output. It points into the text, so it lives no longer than
// that.
class PieceEncoder {
 public:
  PieceEncoder(const Bpe& bpe, std::string_view text, std::vector<TokenId>* out)
      : bpe_(bpe),
        out_(out),
        seen_(std::bit_ceil(std::clamp(text.size() / 8, kMinSlots, kMaxSlots))) {}

  void encode(std::string_view piece) {
    if (piece.size() < 2 || piece.size() > kMaxSeenBytes) return bpe_.encode(piece, scratch_, out_);
    Seen& seen = seen_[std::hash<std::string_view>()(piece) & (seen_.size() - 1)];
    if (seen.piece == piece) {
      // Not insert(): the source lies in the same vector.
      const std::size_t begin = out_->size();
      out_->resize(begin + seen.num_tokens);
      std::copy_n(out_->begin() + seen.first_token, seen.num_tokens, out_->begin() + begin);
      return;
    }
    seen.piece = piece;
    seen.first_token = out_->size();
    bpe_.encode(piece, scratch_, out_);
    seen.num_tokens = out_->size() - seen.first_token;
  }

 private:
  static constexpr std::size_t kMinSlots = 64, kMaxSlots = 1 << 14;
  static constexpr std::size_t kMaxSeenBytes = 64;

  struct Seen {
    std::string_view piece;
    std::size_t first_token = 0, num_tokens = 0;
  };

  const Bpe& bpe_;
  std::vector<TokenId>* out_;
  Bpe::Scratch scratch_;
  std::vector<Seen> seen_;
};

// Calls `on_text` for what lies between added tokens and `on_token` for them, in order.
template <typename OnText, typename OnToken>
void split_at(const AddedTokens& added, std::string_view text, const OnText& on_text,
              const OnToken& on_token) {
  std::size_t done = 0;
  while (const auto match = added.find(text, done)) {
    on_text(text.substr(done, match->begin - done));
    on_token(match->id);
    done = match->end;
  }
  on_text(text.substr(done));
}

}  // namespace

Tokenizer::Tokenizer(Vocabulary vocabulary, Bpe bpe, PreTokenizer pre_tokenizer)
    : vocabulary_(std::move(vocabulary)),
      bpe_(std::move(bpe)),
      pre_tokenizer_(std::move(pre_tokenizer)),
      bos_id_(vocabulary_.find_added(kBosContent)),
      eos_id_(vocabulary_.find_added(kEosContent)) {}

Result<Tokenizer> Tokenizer::load(const std::string& path) {
  std::error_code error;
  if (std::filesystem::is_directory(path, error)) {
    return load((std::filesystem::path(path) / "tokenizer.json").string());
  }
  ASSIGN_OR_RETURN(const std::string text, read_file(path));
  return parse(text, path);
}

Result<Tokenizer> Tokenizer::parse(std::string_view text, std::string_view name) {
  ASSIGN_OR_RETURN(TokenizerJson json, parse_tokenizer_json(text), "{}", name);
  ASSIGN_OR_RETURN(Vocabulary vocabulary,
                   Vocabulary::create(std::move(json.vocabulary), std::move(json.vocabulary_ids),
                                      json.added_tokens),
                   "{}", name);
  ASSIGN_OR_RETURN(const auto byte_tokens, find_byte_tokens(vocabulary), "{}", name);
  ASSIGN_OR_RETURN(std::vector<Merge> merges, resolve_merges(json, vocabulary), "{}", name);
  ASSIGN_OR_RETURN(Bpe bpe, Bpe::create(byte_tokens, std::move(merges)), "{}", name);
  ASSIGN_OR_RETURN(PreTokenizer pre_tokenizer, PreTokenizer::create(json.split_patterns), "{}",
                   name);
  Tokenizer tokenizer(std::move(vocabulary), std::move(bpe), std::move(pre_tokenizer));
  for (const AddedToken& token : json.added_tokens) {
    AddedTokens& added = token.normalized ? tokenizer.second_added_ : tokenizer.first_added_;
    added.add(token.content, token.id);
  }
  return tokenizer;
}

std::vector<TokenId> Tokenizer::encode(std::string_view text) const {
  std::string repaired;
  if (valid_utf8_prefix(text) != text.size()) {
    repaired = to_valid_utf8(text);
    text = repaired;
  }
  std::vector<TokenId> out;
  out.reserve(text.size() / 4 + 8);
  PieceEncoder encoder(bpe_, text, &out);
  const PreTokenizer::Sink encode_piece = [&](std::string_view piece) { encoder.encode(piece); };
  const auto on_token = [&](TokenId id) { out.push_back(id); };
  const auto on_text = [&](std::string_view part) { pre_tokenizer_.split(part, encode_piece); };
  const auto second_pass = [&](std::string_view part) {
    split_at(second_added_, part, on_text, on_token);
  };
  split_at(first_added_, text, second_pass, on_token);
  return out;
}

std::string Tokenizer::decode(std::span<const TokenId> tokens, SpecialTokens special) const {
  std::string bytes;
  for (const TokenId id : tokens) {
    if (special == SpecialTokens::kKeep || !is_special(id)) bytes.append(token_bytes(id));
  }
  return valid_utf8_prefix(bytes) == bytes.size() ? bytes : to_valid_utf8(bytes);
}

std::optional<TokenId> Tokenizer::find(std::string_view bytes) const {
  if (const auto id = vocabulary_.find_added(bytes)) return id;
  return vocabulary_.find_spelling(bytes_to_spelling(bytes));
}

}  // namespace stoker
