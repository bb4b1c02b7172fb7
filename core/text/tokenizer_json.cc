#include "core/text/tokenizer_json.h"

#include <fmt/format.h>

#include <algorithm>
#include <initializer_list>
#include <nlohmann/json.hpp>
#include <optional>
#include <utility>

namespace stoker {
namespace {

using Json = nlohmann::json;

// Far above what real files need, low enough that nothing below is a way to exhaust us.
constexpr std::size_t kMaxFileBytes = std::size_t{256} << 20;
constexpr std::size_t kMaxDepth = 16;
constexpr std::size_t kMaxValues = std::size_t{1} << 20;  // outside vocabulary and merges
constexpr std::size_t kMaxSplits = 16;

std::string shorten(std::string_view text) {
  constexpr std::size_t kMaxShown = 80;
  if (text.size() <= kMaxShown) return std::string(text);
  return std::string(text.substr(0, kMaxShown)) + "...";
}

// The SAX events. model.vocab and model.merges go to flat lists; the rest, some hundred small
// values, becomes a document of its own.
class Reader : public nlohmann::json_sax<Json> {
 public:
  explicit Reader(TokenizerJson* out) : out_(out) {}

  std::optional<Error> take_error() { return std::move(error_); }
  Json take_document() { return std::move(document_); }

  bool null() override { return add_value(nullptr); }
  bool boolean(bool value) override { return add_value(value); }
  bool number_float(number_float_t value, const string_t&) override { return add_value(value); }
  bool number_integer(number_integer_t value) override { return add_value(value); }
  bool binary(binary_t&) override { return refuse("binary data"); }

  bool number_unsigned(number_unsigned_t value) override {
    if (place_ != Place::kVocab) return add_value(value);
    if (value >= static_cast<number_unsigned_t>(kMaxTokenId)) {
      return refuse(fmt::format("model.vocab: \"{}\" has id {}, the limit is {}", shorten(key_),
                                value, kMaxTokenId));
    }
    out_->vocabulary.push_back(key_);
    out_->vocabulary_ids.push_back(static_cast<TokenId>(value));
    return true;
  }

  bool string(string_t& value) override {
    switch (place_) {
      case Place::kMerges: {
        const std::size_t space = value.find(' ');
        if (space == std::string::npos || value.find(' ', space + 1) != std::string::npos) {
          return refuse(fmt::format("model.merges[{}] is not two tokens with a space between",
                                    merge_index()));
        }
        out_->merges_left.push_back(std::string_view(value).substr(0, space));
        out_->merges_right.push_back(std::string_view(value).substr(space + 1));
        return true;
      }
      case Place::kMergePair:
        if (num_in_pair_ == 2) return refuse_pair();
        (num_in_pair_ == 0 ? out_->merges_left : out_->merges_right).push_back(value);
        ++num_in_pair_;
        return true;
      default:
        return add_value(std::move(value));
    }
  }

  bool start_object(std::size_t) override {
    if (place_ == Place::kDocument && at_model_field("vocab")) {
      place_ = Place::kVocab;
      seen_vocab_ = true;
      return place(nullptr) != nullptr;  // keeps the name, so that a second one is noticed
    }
    return open(Json::object());
  }

  bool end_object() override {
    if (place_ == Place::kVocab) {
      place_ = Place::kDocument;
      return true;
    }
    return close();
  }

  bool start_array(std::size_t) override {
    if (place_ == Place::kDocument && at_model_field("merges")) {
      place_ = Place::kMerges;
      seen_merges_ = true;
      return place(nullptr) != nullptr;
    }
    if (place_ == Place::kMerges) {
      place_ = Place::kMergePair;
      return true;
    }
    return open(Json::array());
  }

  bool end_array() override {
    if (place_ == Place::kMergePair) {
      place_ = Place::kMerges;
      if (num_in_pair_ != 2) return refuse_pair();
      num_in_pair_ = 0;
      return true;
    }
    if (place_ == Place::kMerges) {
      place_ = Place::kDocument;
      return true;
    }
    return close();
  }

  bool key(string_t& key) override {
    key_ = std::move(key);
    if (place_ == Place::kVocab) return true;
    if (open_.back().value->contains(key_)) {
      return refuse(fmt::format("\"{}\" stands twice in one object", shorten(key_)));
    }
    return true;
  }

  bool parse_error(std::size_t position, const std::string&, const Json::exception& e) override {
    error_ = make_error(ErrorCode::kCorrupt, "not JSON at byte {}: {}", position,
                        shorten(to_printable(e.what())));
    return false;
  }

  bool seen_vocab() const { return seen_vocab_; }
  bool seen_merges() const { return seen_merges_; }

 private:
  enum class Place { kDocument, kVocab, kMerges, kMergePair };

  struct Open {
    Json* value;
    std::string name;  // the key under which it stands in its parent, "" in an array
  };

  static std::string to_printable(std::string_view text) {
    std::string printable(
        text.substr(text.find("] ") == std::string_view::npos ? 0 : text.find("] ") + 2));
    std::replace_if(
        printable.begin(), printable.end(), [](char c) { return c < ' ' || c > '~'; }, '?');
    return printable;
  }

  bool refuse(std::string what) {
    error_ = Error(ErrorCode::kCorrupt, std::move(what));
    return false;
  }

  bool refuse_pair() {
    return refuse(fmt::format("model.merges[{}] is not a pair of strings", merge_index()));
  }

  // Of the merge being read.
  std::size_t merge_index() const {
    return out_->merges_right.size() - (num_in_pair_ == 2 ? 1 : 0);
  }

  bool at_model_field(std::string_view field) const {
    return open_.size() == 2 && open_.back().name == "model" && key_ == field;
  }

  // Puts a value into the document and says where it is now. Empty after an error.
  Json* place(Json value) {
    if (++num_values_ > kMaxValues) {
      refuse(fmt::format("more than {} values outside model.vocab and model.merges", kMaxValues));
      return nullptr;
    }
    if (open_.empty()) {
      document_ = std::move(value);
      return &document_;
    }
    Json& parent = *open_.back().value;
    if (parent.is_array()) {
      parent.push_back(std::move(value));
      return &parent.back();
    }
    return &(parent[key_] = std::move(value));
  }

  bool add_value(Json value) {
    if (place_ == Place::kVocab) {
      return refuse(fmt::format("model.vocab: the id of \"{}\" is not a whole number from 0 up",
                                shorten(key_)));
    }
    if (place_ != Place::kDocument) {
      return refuse(
          fmt::format("model.merges[{}] is neither a string nor a pair of strings", merge_index()));
    }
    return place(std::move(value)) != nullptr;
  }

  bool open(Json container) {
    if (place_ != Place::kDocument) return add_value(std::move(container));
    if (open_.size() == kMaxDepth) {
      return refuse(fmt::format("nested deeper than {} levels", kMaxDepth));
    }
    const bool in_object = !open_.empty() && open_.back().value->is_object();
    std::string name = in_object ? key_ : std::string();
    Json* value = place(std::move(container));
    if (value == nullptr) return false;
    open_.push_back({value, std::move(name)});
    return true;
  }

  bool close() {
    open_.pop_back();
    return true;
  }

  TokenizerJson* out_;
  Json document_;
  std::vector<Open> open_;  // pointers stay good: a parent grows only after its child is closed
  Place place_ = Place::kDocument;
  std::string key_;
  int num_in_pair_ = 0;  // strings read of the pair that is open
  std::size_t num_values_ = 0;
  bool seen_vocab_ = false;
  bool seen_merges_ = false;
  std::optional<Error> error_;
};

// --- What the small document may say ---

std::string show(const Json& value) {
  return shorten(value.dump(-1, ' ', true, Json::error_handler_t::replace));
}

const Json& field(const Json& object, const char* name) {
  static const Json kNull;
  const auto it = object.find(name);
  return it == object.end() ? kNull : *it;
}

Error unsupported(std::string_view path, const Json& value, std::string_view supported) {
  return make_error(ErrorCode::kUnsupported, "{} is {}; supported: {}", path, show(value),
                    supported);
}

// Every field of `object` is one of `known`: a field nobody looked at could change the ids.
Status check_fields(const Json& object, std::string_view path,
                    std::initializer_list<std::string_view> known) {
  if (!object.is_object()) {
    return make_error(ErrorCode::kCorrupt, "{} is {}, not an object", path, show(object));
  }
  for (const auto& [name, value] : object.items()) {
    if (std::find(known.begin(), known.end(), name) == known.end()) {
      return make_error(ErrorCode::kUnsupported, "{}: unknown field \"{}\"", path, shorten(name));
    }
  }
  return {};
}

Status check_is(const Json& object, std::string_view path, const char* name, const Json& expected) {
  if (field(object, name) == expected) return {};
  return unsupported(fmt::format("{}.{}", path, name), field(object, name), show(expected));
}

// Null, absent or `or_else`.
Status check_unset(const Json& object, std::string_view path, const char* name,
                   const Json& or_else = nullptr) {
  const Json& value = field(object, name);
  if (value.is_null() || value == or_else) return {};
  return unsupported(fmt::format("{}.{}", path, name), value, show(or_else));
}

Status check_byte_level(const Json& value, std::string_view path) {
  RETURN_IF_ERROR(
      check_fields(value, path, {"type", "add_prefix_space", "trim_offsets", "use_regex"}));
  return check_is(value, path, "type", "ByteLevel");
}

Status check_normalizer(const Json& normalizer) {
  if (normalizer.is_null()) return {};
  const bool is_empty_sequence = normalizer.is_object() &&
                                 field(normalizer, "type") == "Sequence" &&
                                 field(normalizer, "normalizers") == Json::array();
  if (is_empty_sequence) return {};
  return unsupported("normalizer", normalizer, "null or an empty Sequence");
}

Result<std::string> parse_split(const Json& split, std::string_view path) {
  RETURN_IF_ERROR(check_fields(split, path, {"type", "pattern", "behavior", "invert"}));
  RETURN_IF_ERROR(check_is(split, path, "type", "Split"));
  RETURN_IF_ERROR(check_is(split, path, "behavior", "Isolated"));
  RETURN_IF_ERROR(check_is(split, path, "invert", false));
  const Json& pattern = field(split, "pattern");
  const std::string pattern_path = fmt::format("{}.pattern", path);
  RETURN_IF_ERROR(check_fields(pattern, pattern_path, {"Regex"}));
  const Json& regex = field(pattern, "Regex");
  if (!regex.is_string()) return unsupported(pattern_path + ".Regex", regex, "a string");
  return regex.get_ref<const std::string&>();
}

Result<std::vector<std::string>> parse_pre_tokenizer(const Json& value) {
  const std::string path = "pre_tokenizer";
  if (!value.is_object() || field(value, "type") != "Sequence") {
    return unsupported(path, value, "a Sequence of Split and, last, ByteLevel");
  }
  RETURN_IF_ERROR(check_fields(value, path, {"type", "pretokenizers"}));
  const Json& parts = field(value, "pretokenizers");
  if (!parts.is_array() || parts.empty() || parts.size() > kMaxSplits + 1) {
    return unsupported("pre_tokenizer.pretokenizers", parts,
                       fmt::format("up to {} Splits and, last, ByteLevel", kMaxSplits));
  }
  std::vector<std::string> patterns;
  for (std::size_t i = 0; i + 1 < parts.size(); ++i) {
    ASSIGN_OR_RETURN(std::string pattern,
                     parse_split(parts[i], fmt::format("pre_tokenizer.pretokenizers[{}]", i)));
    patterns.push_back(std::move(pattern));
  }
  const std::string last = fmt::format("pre_tokenizer.pretokenizers[{}]", parts.size() - 1);
  RETURN_IF_ERROR(check_byte_level(parts.back(), last));
  RETURN_IF_ERROR(check_is(parts.back(), last, "add_prefix_space", false));
  RETURN_IF_ERROR(check_is(parts.back(), last, "use_regex", false));
  return patterns;
}

Status check_model(const Json& model) {
  RETURN_IF_ERROR(check_fields(
      model, "model",
      {"type", "dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix",
       "fuse_unk", "byte_fallback", "ignore_merges", "vocab", "merges"}));
  RETURN_IF_ERROR(check_is(model, "model", "type", "BPE"));
  RETURN_IF_ERROR(check_unset(model, "model", "dropout"));
  RETURN_IF_ERROR(check_unset(model, "model", "unk_token"));
  RETURN_IF_ERROR(check_unset(model, "model", "continuing_subword_prefix", ""));
  RETURN_IF_ERROR(check_unset(model, "model", "end_of_word_suffix", ""));
  RETURN_IF_ERROR(check_unset(model, "model", "fuse_unk", false));
  RETURN_IF_ERROR(check_unset(model, "model", "byte_fallback", false));
  return check_unset(model, "model", "ignore_merges", false);
}

Result<AddedToken> parse_added_token(const Json& value, std::string_view path) {
  RETURN_IF_ERROR(check_fields(
      value, path, {"id", "content", "single_word", "lstrip", "rstrip", "normalized", "special"}));
  for (const char* name : {"single_word", "lstrip", "rstrip"}) {
    RETURN_IF_ERROR(check_unset(value, path, name, false));
  }
  AddedToken token;
  for (const auto& [name, flag] :
       {std::pair("normalized", &token.normalized), std::pair("special", &token.special)}) {
    const Json& json = field(value, name);
    if (!json.is_boolean()) {
      return make_error(ErrorCode::kCorrupt, "{}.{} is {}, not a boolean", path, name, show(json));
    }
    *flag = json.get<bool>();
  }
  const Json& id = field(value, "id");
  if (!id.is_number_unsigned() || id.get<std::uint64_t>() >= std::uint64_t{kMaxTokenId}) {
    return make_error(ErrorCode::kCorrupt, "{}.id is {}, not a whole number below {}", path,
                      show(id), kMaxTokenId);
  }
  token.id = id.get<TokenId>();
  const Json& content = field(value, "content");
  if (!content.is_string() || content.get_ref<const std::string&>().empty()) {
    return make_error(ErrorCode::kCorrupt, "{}.content is {}, not a string of some length", path,
                      show(content));
  }
  token.content = content.get_ref<const std::string&>();
  return token;
}

Result<std::vector<AddedToken>> parse_added_tokens(const Json& value) {
  std::vector<AddedToken> tokens;
  if (value.is_null()) return tokens;
  if (!value.is_array()) return unsupported("added_tokens", value, "an array");
  for (std::size_t i = 0; i < value.size(); ++i) {
    ASSIGN_OR_RETURN(AddedToken token,
                     parse_added_token(value[i], fmt::format("added_tokens[{}]", i)));
    tokens.push_back(std::move(token));
  }
  return tokens;
}

Status interpret(const Json& document, TokenizerJson* out) {
  RETURN_IF_ERROR(check_fields(document, "the document",
                               {"version", "truncation", "padding", "added_tokens", "normalizer",
                                "pre_tokenizer", "post_processor", "decoder", "model"}));
  const Json& version = field(document, "version");
  if (!version.is_null() && version != "1.0") return unsupported("version", version, "\"1.0\"");
  for (const char* name : {"truncation", "padding"}) {
    if (!field(document, name).is_null()) return unsupported(name, field(document, name), "null");
  }
  RETURN_IF_ERROR(check_model(field(document, "model")));
  RETURN_IF_ERROR(check_normalizer(field(document, "normalizer")));
  ASSIGN_OR_RETURN(out->split_patterns, parse_pre_tokenizer(field(document, "pre_tokenizer")));
  // As post-processor ByteLevel only trims offsets, which we do not report.
  if (const Json& post = field(document, "post_processor"); !post.is_null()) {
    RETURN_IF_ERROR(check_byte_level(post, "post_processor"));
  }
  RETURN_IF_ERROR(check_byte_level(field(document, "decoder"), "decoder"));
  ASSIGN_OR_RETURN(out->added_tokens, parse_added_tokens(field(document, "added_tokens")));
  return {};
}

}  // namespace

Result<TokenizerJson> parse_tokenizer_json(std::string_view text) {
  if (text.size() > kMaxFileBytes) {
    return make_error(ErrorCode::kUnsupported, "{} bytes, the limit is {}", text.size(),
                      kMaxFileBytes);
  }
  TokenizerJson out;
  Reader reader(&out);
  if (!Json::sax_parse(text.data(), text.data() + text.size(), &reader)) {
    if (std::optional<Error> error = reader.take_error()) return *std::move(error);
    return make_error(ErrorCode::kCorrupt, "not JSON");
  }
  RETURN_IF_ERROR(interpret(reader.take_document(), &out));
  if (!reader.seen_vocab()) return make_error(ErrorCode::kCorrupt, "model.vocab is not an object");
  if (!reader.seen_merges()) return make_error(ErrorCode::kCorrupt, "model.merges is not an array");
  return out;
}

}  // namespace stoker
