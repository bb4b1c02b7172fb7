// What a tokenizer.json may not say. Each case is the small tokenizer with one thing changed.
#include "core/text/tokenizer_json.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <functional>
#include <iterator>
#include <nlohmann/json.hpp>

#include "core/text/tokenizer.h"

namespace stoker {
namespace {

using Json = nlohmann::json;
using testing::HasSubstr;
using testing::StartsWith;

const std::string& small_text() {
  static const std::string text = [] {
    std::ifstream file(STOKER_SOURCE_DIR "/tests/data/small_tokenizer.json");
    return std::string(std::istreambuf_iterator<char>(file), {});
  }();
  return text;
}

void expect_refused(std::string_view text, ErrorCode code, const std::string& what) {
  auto tokenizer = Tokenizer::parse(text, "file.json");
  ASSERT_FALSE(tokenizer.ok()) << what;
  EXPECT_EQ(tokenizer.error().code(), code) << tokenizer.error().message();
  EXPECT_THAT(tokenizer.error().message(), StartsWith("file.json: "));
  EXPECT_THAT(tokenizer.error().message(), HasSubstr(what));
  EXPECT_LT(tokenizer.error().message().size(), 400u);
}

void expect_refused(const std::function<void(Json&)>& change, ErrorCode code,
                    const std::string& what) {
  Json json = Json::parse(small_text());
  change(json);
  expect_refused(json.dump(), code, what);
}

void expect_same_ids(const std::string& text) {
  auto changed = Tokenizer::parse(text, "changed.json");
  ASSERT_TRUE(changed.ok()) << changed.error().message();
  const std::string sample = "The experts wait on the disk, 1234 of them.";
  EXPECT_EQ(changed->encode(sample), Tokenizer::parse(small_text(), "")->encode(sample));
}

TEST(TokenizerJson, MergesMayBeStringsOrPairs) {
  Json json = Json::parse(small_text());
  for (Json& merge : json["model"]["merges"]) {
    ASSERT_TRUE(merge.is_array());
    merge = merge[0].get<std::string>() + " " + merge[1].get<std::string>();
  }
  expect_same_ids(json.dump());
}

TEST(TokenizerJson, OptionalFieldsMayBeMissing) {
  Json json = Json::parse(small_text());
  for (const char* name : {"version", "truncation", "padding", "normalizer", "post_processor"}) {
    json.erase(name);
  }
  for (const char* name : {"dropout", "unk_token", "fuse_unk", "byte_fallback", "ignore_merges"}) {
    json["model"].erase(name);
  }
  expect_same_ids(json.dump());
  json["normalizer"] = {{"type", "Sequence"}, {"normalizers", Json::array()}};
  expect_same_ids(json.dump());
}

TEST(TokenizerJson, RefusesWhatItDoesNotSupport) {
  const auto refused = [](const char* pointer, Json value, const std::string& what) {
    expect_refused([&](Json& json) { json[Json::json_pointer(pointer)] = std::move(value); },
                   ErrorCode::kUnsupported, what);
  };
  refused("/version", "2.0", "version is \"2.0\"");
  refused("/truncation", Json::object(), "truncation");
  refused("/padding", Json::object(), "padding");
  refused("/new_field", 1, "unknown field \"new_field\"");
  refused("/normalizer", {{"type", "NFC"}}, "normalizer");
  refused("/model/type", "WordPiece", "model.type is \"WordPiece\"");
  refused("/model/type", nullptr, "model.type");
  refused("/model/byte_fallback", true, "model.byte_fallback is true");
  refused("/model/ignore_merges", true, "model.ignore_merges");
  refused("/model/dropout", 0.1, "model.dropout");
  refused("/model/unk_token", "<unk>", "model.unk_token");
  refused("/model/end_of_word_suffix", "</w>", "model.end_of_word_suffix");
  refused("/model/new_field", 1, "model: unknown field");
  refused("/decoder", {{"type", "Metaspace"}}, "decoder.type");
  refused("/post_processor", {{"type", "TemplateProcessing"}}, "post_processor");
  refused("/pre_tokenizer", nullptr, "pre_tokenizer is null");
  refused("/pre_tokenizer/pretokenizers", Json::array(), "pre_tokenizer.pretokenizers");
  refused("/pre_tokenizer/pretokenizers/0/behavior", "Removed",
          "pre_tokenizer.pretokenizers[0].behavior is \"Removed\"");
  refused("/pre_tokenizer/pretokenizers/0/invert", true, "pretokenizers[0].invert");
  refused("/pre_tokenizer/pretokenizers/0/pattern", {{"String", "x"}}, "pretokenizers[0].pattern");
  refused("/pre_tokenizer/pretokenizers/1/pattern/Regex", "[a&&b]",
          "pre_tokenizer.pretokenizers[1].pattern.Regex: the construct &&");
  refused("/pre_tokenizer/pretokenizers/2/type", "Digits", "pretokenizers[2].type");
  refused("/pre_tokenizer/pretokenizers/3/use_regex", true, "pretokenizers[3].use_regex");
  refused("/pre_tokenizer/pretokenizers/3/add_prefix_space", true,
          "pretokenizers[3].add_prefix_space");
  refused("/added_tokens/3/lstrip", true, "added_tokens[3].lstrip is true");
  refused("/added_tokens/3/single_word", true, "added_tokens[3].single_word");
  expect_refused(
      [](Json& json) {
        json["model"]["vocab"].erase("Ġ");
        json["model"]["merges"].clear();
      },
      ErrorCode::kUnsupported, "no token for the byte 0x20");
  // "Ġ" in model.vocab is a space; as added token it would be the letter.
  expect_refused(
      [](Json& json) {
        json["added_tokens"][0]["content"] = "Ġ";
        json["added_tokens"][0]["id"] = json["model"]["vocab"]["Ġ"];
      },
      ErrorCode::kUnsupported, "added_tokens[0].content also spells other bytes");
}

TEST(TokenizerJson, RefusesWhatContradictsItself) {
  const auto refused = [](const char* pointer, Json value, const std::string& what) {
    expect_refused([&](Json& json) { json[Json::json_pointer(pointer)] = std::move(value); },
                   ErrorCode::kCorrupt, what);
  };
  refused("/model", 3, "model is 3, not an object");
  refused("/model/vocab", Json::array(), "model.vocab is not an object");
  refused("/model/merges", "a b", "model.merges is not an array");
  refused("/model/vocab/a", -1, "model.vocab: the id of \"a\"");
  refused("/model/vocab/a", 1.5, "model.vocab: the id of \"a\"");
  refused("/model/vocab/a", Json::array(), "model.vocab: the id of \"a\"");
  refused("/model/vocab/a", Json::object(), "model.vocab: the id of \"a\"");
  refused("/model/vocab/a", 4294967296, "model.vocab: \"a\" has id 4294967296");
  refused("/model/vocab/a", 2000000000, "the limit is");
  refused("/model/vocab/new", 5, "model.vocab: id 5 stands twice");
  refused("/model/merges/2", "nospace", "model.merges[2]");
  refused("/model/merges/2", "a b c", "model.merges[2]");
  refused("/model/merges/2", 7, "model.merges[2]");
  refused("/model/merges/2", Json::object(), "model.merges[2]");
  refused("/model/merges/2", Json::array({"a"}), "model.merges[2]");
  refused("/model/merges/2", Json::array({"a", "b", "c"}), "model.merges[2]");
  refused("/model/merges/2", Json::array({"a", 1}), "model.merges[2]");
  refused("/model/merges/2", Json::array({"", "a"}), "model.merges[2] has an empty side");
  refused("/model/merges/2", " a", "model.merges[2] has an empty side");
  refused("/model/merges/2", "nobody a", "model.merges[2]: the left token");
  refused("/model/merges/2", "a nobody", "model.merges[2]: the right token");
  refused("/model/merges/2", "~ ~", "model.merges[2]: the result");
  refused("/model/merges/2", Json::parse(small_text())["model"]["merges"][0],
          "model.merges[2] repeats model.merges[0]");
  refused("/added_tokens/0/id", 1 << 30, "added_tokens[0].id");
  refused("/added_tokens/0/id", -1, "added_tokens[0].id");
  refused("/added_tokens/0/id", 5, "added_tokens[0].id 5 is taken");
  refused("/added_tokens/1/id", 682, "added_tokens[1].id 682 is taken");
  refused("/added_tokens/0/content", "", "added_tokens[0].content");
  refused("/added_tokens/0/content", 9, "added_tokens[0].content");
  refused("/added_tokens/0/content", "a", "added_tokens[0].id is 682, in model.vocab");
  refused("/added_tokens/1/content", "<think>", "content stands twice");
  refused("/added_tokens/0/special", "yes", "added_tokens[0].special");
  refused("/added_tokens/0", 1, "added_tokens[0] is 1");
}

TEST(TokenizerJson, RefusesDuplicateKeys) {
  const auto duplicated = [](const std::string& at, const std::string& extra) {
    std::string text = small_text();
    const std::size_t place = text.find(at);
    EXPECT_NE(place, text.npos);
    text.insert(place, extra);
    return text;
  };
  expect_refused(duplicated("\"version\"", "\"version\":null,"), ErrorCode::kCorrupt,
                 "stands twice");
  expect_refused(duplicated("\"vocab\"", "\"vocab\":{},"), ErrorCode::kCorrupt,
                 "\"vocab\" stands twice");
  expect_refused(duplicated("\"merges\"", "\"merges\":1,"), ErrorCode::kCorrupt, "stands twice");
  expect_refused(duplicated("\"a\":", "\"a\":700,"), ErrorCode::kCorrupt, "is spelled like id");
}

TEST(TokenizerJson, RefusesWhatIsNotJson) {
  const std::string& text = small_text();
  for (std::size_t size = 0; size + 2 < text.size(); size += 97) {
    EXPECT_FALSE(Tokenizer::parse(std::string_view(text).substr(0, size), "cut").ok()) << size;
  }
  expect_refused("", ErrorCode::kCorrupt, "not JSON at byte");
  expect_refused("{\"a\": \"\xFF\"}", ErrorCode::kCorrupt, "not JSON at byte");
  expect_refused("{\"a\": 1e999}", ErrorCode::kCorrupt, "not JSON at byte");
  expect_refused(text + "x", ErrorCode::kCorrupt, "not JSON at byte");
  expect_refused("3", ErrorCode::kCorrupt, "the document is 3, not an object");
  expect_refused(std::string(1'000'000, '['), ErrorCode::kCorrupt, "nested deeper than");
  expect_refused("[" + std::string(100'000'0, '0') + "]", ErrorCode::kCorrupt, "not JSON at byte");
}

}  // namespace
}  // namespace stoker
