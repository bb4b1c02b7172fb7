#include "storage/safetensors.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

namespace stoker::storage {
namespace {

using ::testing::HasSubstr;

// A file of `json` and `data_bytes` zero bytes.
std::string file_of(const std::string& json, std::size_t data_bytes) {
  std::string file;
  for (int i = 0; i < 8; ++i) file += static_cast<char>(json.size() >> (8 * i) & 0xff);
  return file + json + std::string(data_bytes, '\0');
}

Result<SafetensorsHeader> parse(const std::string& file) {
  return parse_safetensors(std::as_bytes(std::span(file)), std::ssize(file));
}

std::string message(const std::string& json, std::size_t data_bytes) {
  const auto header = parse(file_of(json, data_bytes));
  return header.ok() ? "" : header.error().message();
}

TEST(Safetensors, ReadsAHeader) {
  const std::string json =
      R"({"__metadata__": {"format": "pt"},
          "b": {"dtype": "BF16", "shape": [2, 3], "data_offsets": [4, 16]},
          "a": {"dtype": "F32", "shape": [], "data_offsets": [0, 4]},
          "none": {"dtype": "I64", "shape": [0, 7], "data_offsets": [16, 16]}}   )";
  const auto header = parse(file_of(json, 16));
  ASSERT_TRUE(header.ok()) << header.error().message();
  EXPECT_EQ(header->data_begin, 8 + std::ssize(json));
  EXPECT_EQ(header->metadata.at("format"), "pt");
  ASSERT_EQ(header->entries.size(), 3u);
  EXPECT_EQ(header->entries[0].name, "a");
  EXPECT_EQ(header->entries[0].bytes, 4);
  EXPECT_EQ(header->entries[1].name, "b");
  EXPECT_EQ(header->entries[1].type, StoredType::kBf16);
  EXPECT_EQ(header->entries[1].shape, (std::vector<std::int64_t>{2, 3}));
  EXPECT_EQ(header->entries[1].offset, header->data_begin + 4);
  EXPECT_EQ(header->entries[2].bytes, 0);
}

TEST(Safetensors, AFileWithoutTensors) { EXPECT_EQ(message("{}", 0), ""); }

TEST(Safetensors, RefusesLengths) {
  EXPECT_THAT(parse("").error().message(), HasSubstr("truncated: 0 bytes"));
  EXPECT_THAT(parse("1234567").error().message(), HasSubstr("truncated: 7 bytes"));
  EXPECT_THAT(parse(std::string("\x20\0\0\0\0\0\0\0{}", 10)).error().message(),
              HasSubstr("truncated: the header ends at byte 40, the file holds 10"));
  EXPECT_THAT(parse(std::string(8, '\xff') + "{}").error().message(),
              HasSubstr("a header of 18446744073709551615 bytes exceeds 100000000"));
  // The whole file must be there, not only the header.
  const std::string file = file_of("{}", 0);
  EXPECT_FALSE(parse_safetensors(std::as_bytes(std::span(file)).first(9), 10).ok());
}

struct Refusal {
  const char* what;
  const char* json;
  int data_bytes;
  const char* message;
};
void PrintTo(const Refusal& refusal, std::ostream* out) { *out << refusal.what; }

class SafetensorsRefuses : public ::testing::TestWithParam<Refusal> {};

TEST_P(SafetensorsRefuses, AndSaysWhy) {
  const Refusal& c = GetParam();
  EXPECT_THAT(message(c.json, static_cast<std::size_t>(c.data_bytes)), HasSubstr(c.message));
}

INSTANTIATE_TEST_SUITE_P(
    Headers, SafetensorsRefuses,
    ::testing::Values(
        Refusal{"no_json", "{", 0, "header: not valid JSON: "},
        Refusal{"trailing", "{} x", 0, "not valid JSON"},
        Refusal{"list", "[]", 0, "must be a JSON object, is a list"},
        Refusal{"number", "7", 0, "must be a JSON object, is a number"},
        Refusal{"bad_utf8", "{\"\xff\": 1}", 0, "not valid JSON"},
        Refusal{"twice",
                R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},
                    "a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}})",
                1, "a is stored twice"},
        Refusal{"field_twice", R"({"a":{"dtype":"U8","dtype":"U8"}})", 0,
                "tensor a: dtype is given twice"},
        Refusal{"missing_dtype", R"({"a":{"shape":[1],"data_offsets":[0,1]}})", 1,
                "tensor a: dtype is missing"},
        Refusal{"missing_shape", R"({"a":{"dtype":"U8","data_offsets":[0,1]}})", 1,
                "tensor a: shape is missing"},
        Refusal{"missing_offsets", R"({"a":{"dtype":"U8","shape":[1]}})", 1,
                "tensor a: data_offsets is missing"},
        Refusal{"unknown_dtype", R"({"a":{"dtype":"F4","shape":[1],"data_offsets":[0,1]}})", 1,
                "tensor a: dtype F4 is not known"},
        Refusal{"unknown_field", R"({"a":{"dtype":"U8","stride":1}})", 1,
                "tensor a: unknown field \"stride\""},
        Refusal{"dtype_number", R"({"a":{"dtype":8}})", 1,
                "tensor a: a number in the place of the name of a dtype"},
        Refusal{"shape_negative", R"({"a":{"dtype":"U8","shape":[-1],"data_offsets":[0,1]}})", 1,
                "tensor a: a negative number in the place of a list of whole numbers"},
        Refusal{"shape_fraction", R"({"a":{"dtype":"U8","shape":[1.5],"data_offsets":[0,1]}})", 1,
                "tensor a: the number 1.5"},
        Refusal{"shape_nested", R"({"a":{"dtype":"U8","shape":[[1]],"data_offsets":[0,1]}})", 1,
                "tensor a: a list in the place of"},
        Refusal{"shape_long",
                R"({"a":{"dtype":"U8","shape":[1,1,1,1,1,1,1,1,1],"data_offsets":[0,1]}})", 1,
                "tensor a: more than 8 numbers in shape"},
        Refusal{"shape_overflow",
                R"({"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0]}})", 0,
                "tensor a: shape [4294967296, 4294967296] overflows"},
        Refusal{"tensor_is_list", R"({"a":[]})", 0,
                "tensor a: a list in the place of its description"},
        Refusal{"offsets_three", R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1,2]}})", 1,
                "tensor a: data_offsets must be two numbers, are 3"},
        Refusal{"offsets_none", R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[]}})", 1,
                "tensor a: data_offsets must be two numbers, are 0"},
        Refusal{"offsets_back", R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[1,0]}})", 1,
                "tensor a: data_offsets [1, 0] are not a range"},
        Refusal{"size", R"({"a":{"dtype":"BF16","shape":[2,3],"data_offsets":[0,11]}})", 11,
                "tensor a: BF16 of shape [2, 3] take 12 bytes, data_offsets give 11"},
        Refusal{"truncated", R"({"a":{"dtype":"U8","shape":[9],"data_offsets":[0,9]}})", 8,
                "truncated: tensor a ends at byte 9 of the data, the file holds 8"},
        Refusal{"overlap",
                R"({"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},
                    "b":{"dtype":"U8","shape":[2],"data_offsets":[1,3]}})",
                3, "tensors a and b overlap"},
        Refusal{"hole",
                R"({"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},
                    "b":{"dtype":"U8","shape":[2],"data_offsets":[3,5]}})",
                5, "1 bytes before tensor b belong to no tensor"},
        Refusal{"rest", R"({"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}})", 4,
                "2 bytes at the end of the file belong to no tensor"},
        Refusal{"metadata_number", R"({"__metadata__":{"a":1}})", 0,
                "__metadata__ may hold strings only, has a number"},
        Refusal{"metadata_nested", R"({"__metadata__":{"a":{}}})", 0,
                "__metadata__ may hold strings only, has an object"}),
    [](const auto& info) { return std::string(info.param.what); });

TEST(Safetensors, RefusesANulByteAndDeepNesting) {
  EXPECT_THAT(message(std::string("{}\0{", 4), 0), HasSubstr("NUL"));
  EXPECT_FALSE(parse(file_of(std::string(1 << 20, '['), 0)).ok());
  EXPECT_FALSE(parse(file_of("{\"a\":" + std::string(1 << 20, '['), 0)).ok());
}

TEST(SafetensorsIndex, ReadsTheWeightMap) {
  const auto index = parse_safetensors_index(
      R"({"metadata": {"total_size": 1, "more": [[{"weight_map": {"x": 1}}], null]},
          "weight_map": {"b": "model-1.safetensors", "a": "model-2.safetensors"}})");
  ASSERT_TRUE(index.ok()) << index.error().message();
  ASSERT_EQ(index->size(), 2u);
  EXPECT_EQ((*index)[0].tensor, "b");
  EXPECT_EQ((*index)[0].file, "model-1.safetensors");
  EXPECT_EQ((*index)[1].tensor, "a");
}

TEST(SafetensorsIndex, Refusals) {
  const auto message = [](const std::string& json) {
    const auto index = parse_safetensors_index(json);
    return index.ok() ? "" : index.error().message();
  };
  EXPECT_THAT(message("{"), HasSubstr("not valid JSON"));
  EXPECT_THAT(message("[]"), HasSubstr("must be a JSON object, is a list"));
  EXPECT_THAT(message("{}"), HasSubstr("weight_map is missing"));
  EXPECT_THAT(message(R"({"weight_map": []})"), HasSubstr("weight_map must be an object"));
  EXPECT_THAT(message(R"({"weight_map": "x"})"), HasSubstr("weight_map must be an object"));
  EXPECT_THAT(message(R"({"weight_map": {"a": 1}})"),
              HasSubstr("tensor a: a number in the place of a file name"));
  EXPECT_THAT(message(R"({"weight_map": {"a": {"b": "c"}}})"), HasSubstr("tensor a: an object"));
  EXPECT_THAT(message(R"({"weight_map": {"a": "x", "a": "y"}})"),
              HasSubstr("tensor a is listed twice"));
  EXPECT_THAT(message(R"({"weight_map": {}, "weight_map": {}})"), HasSubstr("given twice"));
  for (const char* file : {"../x", "/x", "a/b", "..", ".", "", "a\\\\b", "a\\u0000b"}) {
    EXPECT_THAT(message(fmt::format(R"({{"weight_map": {{"a": "{}"}}}})", file)),
                HasSubstr("is not the name of a file in this directory"))
        << file;
  }
  std::string deep = "{\"metadata\":";
  for (int i = 0; i < 100; ++i) deep += "[";
  EXPECT_THAT(message(deep), HasSubstr("nested too deeply"));
}

}  // namespace
}  // namespace stoker::storage
