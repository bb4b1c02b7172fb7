#include "tests/support/byte_tokenizer.h"

#include <fstream>
#include <nlohmann/json.hpp>

#include "core/base/check.h"
#include "core/text/byte_alphabet.h"
#include "tests/support/published_configs.h"
#include "tests/support/tiny_model.h"

namespace stoker::test {

std::string byte_tokenizer_json() {
  nlohmann::json added = nlohmann::json::array();
  int id = 0;
  for (const char* content : {"<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>",
                              "<｜Assistant｜>", "<think>", "</think>", "｜DSML｜"}) {
    added.push_back({{"id", id++},
                     {"content", content},
                     {"single_word", false},
                     {"lstrip", false},
                     {"rstrip", false},
                     {"normalized", false},
                     {"special", id <= 2}});
  }
  nlohmann::json vocab = nlohmann::json::object();
  for (int byte = 0; byte < 256; ++byte) {
    vocab[bytes_to_spelling(std::string(1, static_cast<char>(byte)))] = kFirstByte + byte;
  }
  const nlohmann::json split = {{"type", "Split"},
                                {"pattern", {{"Regex", "\\p{N}{1,3}"}}},
                                {"behavior", "Isolated"},
                                {"invert", false}};
  const nlohmann::json bytes = {{"type", "ByteLevel"},
                                {"add_prefix_space", false},
                                {"trim_offsets", true},
                                {"use_regex", false}};
  const nlohmann::json document = {
      {"version", "1.0"},
      {"truncation", nullptr},
      {"padding", nullptr},
      {"added_tokens", added},
      {"normalizer", nullptr},
      {"pre_tokenizer",
       {{"type", "Sequence"}, {"pretokenizers", nlohmann::json::array({split, bytes})}}},
      {"post_processor", nullptr},
      {"decoder", bytes},
      {"model",
       {{"type", "BPE"},
        {"dropout", nullptr},
        {"unk_token", nullptr},
        {"fuse_unk", false},
        {"byte_fallback", false},
        {"vocab", vocab},
        {"merges", nlohmann::json::array()}}}};
  return document.dump(1);
}

ModelConfig write_tiny_text_model(const std::filesystem::path& dir) {
  TinyModelOptions options;
  options.config = with_field(tiny_config(), "vocab_size", std::to_string(kByteVocabSize));
  // A prompt that offers tools has more bytes than the tiny model's 1024 positions.
  options.config = with_field(options.config, "max_position_embeddings", "4096");
  ModelConfig config = write_tiny_model(dir, options);
  std::ofstream file(dir / "tokenizer.json", std::ios::binary);
  file << byte_tokenizer_json();
  file.close();
  CHECK(file.good(), "{}", (dir / "tokenizer.json").string());
  return config;
}

}  // namespace stoker::test
