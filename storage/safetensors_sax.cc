#include "storage/safetensors_sax.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <unordered_set>

#include "storage/safetensors.h"

namespace stoker::storage {
namespace {

// What both documents share: where we are, and the first complaint. Every event has a default that
// refuses it, so a handler names only what it expects.
class Handler : public nlohmann::json_sax<nlohmann::json> {
 public:
  bool null() override { return unexpected("null"); }
  bool boolean(bool /*value*/) override { return unexpected("true or false"); }
  bool number_integer(number_integer_t /*value*/) override {
    return unexpected("a negative number");
  }
  bool number_unsigned(number_unsigned_t /*value*/) override { return unexpected("a number"); }
  bool number_float(number_float_t /*value*/, const string_t& text) override {
    return unexpected("the number " + text);
  }
  bool string(string_t& /*value*/) override { return unexpected("a string"); }
  bool binary(binary_t& /*value*/) override { return unexpected("binary data"); }
  bool parse_error(std::size_t /*position*/, const std::string& /*token*/,
                   const nlohmann::detail::exception& e) override {
    const std::string_view what = e.what();
    const std::size_t tag_end = what.find("] ");
    return fail(fmt::format("not valid JSON: {}",
                            tag_end == std::string_view::npos ? what : what.substr(tag_end + 2)));
  }

  Status run(std::string_view json) {
    // The parser takes a NUL byte for the end of its input.
    if (json.find('\0') != std::string_view::npos) {
      return Error(ErrorCode::kCorrupt, "not valid JSON: it holds a NUL byte");
    }
    try {
      if (!nlohmann::json::sax_parse(json, this) && error_.empty()) error_ = "not valid JSON";
    } catch (const nlohmann::json::exception& e) {
      error_ = e.what();
    }
    if (error_.empty()) return {};
    return Error(ErrorCode::kCorrupt, error_);
  }

 protected:
  bool fail(std::string message) {
    if (error_.empty()) error_ = std::move(message);
    return false;
  }
  virtual bool unexpected(std::string_view what) = 0;

 private:
  std::string error_;
};

class HeaderHandler final : public Handler {
 public:
  HeaderHandler(std::vector<RawEntry>& entries, std::map<std::string, std::string>& metadata)
      : entries_(entries), metadata_(metadata) {}

  bool start_object(std::size_t /*size*/) override {
    switch (at_) {
      case At::kOutside:
        at_ = At::kTop;
        return true;
      case At::kTop:
        at_ = in_metadata_ ? At::kMetadata : At::kTensor;
        field_ = Field::kNone;
        return true;
      default:
        return unexpected("an object");
    }
  }
  bool end_object() override {
    at_ = at_ == At::kTop ? At::kOutside : At::kTop;
    return true;
  }

  bool key(string_t& name) override {
    if (at_ == At::kTop) return top_key(name);
    if (at_ == At::kMetadata) {
      metadata_key_ = name;
      return true;
    }
    RawEntry& entry = entries_.back();
    const auto open = [&](Field field, bool& has) {
      if (has) return fail(fmt::format("tensor {}: {} is given twice", entry.name, name));
      has = true;
      field_ = field;
      return true;
    };
    if (name == "dtype") return open(Field::kDtype, entry.has_dtype);
    if (name == "shape") return open(Field::kShape, entry.has_shape);
    if (name == "data_offsets") return open(Field::kOffsets, entry.has_offsets);
    return fail(fmt::format("tensor {}: unknown field \"{}\"", entry.name, name));
  }

  bool string(string_t& value) override {
    if (at_ == At::kMetadata) {
      metadata_[metadata_key_] = value;
      return true;
    }
    if (at_ != At::kTensor || field_ != Field::kDtype) return unexpected("a string");
    entries_.back().dtype = value;
    return true;
  }

  bool start_array(std::size_t /*size*/) override {
    if (at_ != At::kTensor || (field_ != Field::kShape && field_ != Field::kOffsets)) {
      return unexpected("a list");
    }
    at_ = At::kList;
    return true;
  }
  bool end_array() override {
    at_ = At::kTensor;
    if (field_ == Field::kOffsets && entries_.back().offsets.size() != 2) {
      return fail(fmt::format("tensor {}: data_offsets must be two numbers, are {}",
                              entries_.back().name, entries_.back().offsets.size()));
    }
    return true;
  }

  bool number_unsigned(number_unsigned_t value) override {
    if (at_ != At::kList) return unexpected("a number");
    RawEntry& entry = entries_.back();
    auto& list = field_ == Field::kShape ? entry.shape : entry.offsets;
    if (list.size() == kMaxRank) {
      return fail(fmt::format("tensor {}: more than {} numbers in {}", entry.name, kMaxRank,
                              field_ == Field::kShape ? "shape" : "data_offsets"));
    }
    list.push_back(value);
    return true;
  }

 private:
  enum class At { kOutside, kTop, kMetadata, kTensor, kList };
  enum class Field { kNone, kDtype, kShape, kOffsets };
  static constexpr std::size_t kMaxRank = 8;

  bool top_key(const std::string& name) {
    in_metadata_ = name == "__metadata__";
    if (!names_.insert(name).second) return fail(fmt::format("{} is stored twice", name));
    if (in_metadata_) return true;
    if (name.empty()) return fail("a tensor without a name");
    entries_.emplace_back().name = name;
    return true;
  }

  bool unexpected(std::string_view what) override {
    switch (at_) {
      case At::kOutside:
        return fail(fmt::format("must be a JSON object, is {}", what));
      case At::kMetadata:
        return fail(fmt::format("__metadata__ may hold strings only, has {}", what));
      default:
        return fail(in_metadata_ ? fmt::format("__metadata__ is {}", what)
                                 : fmt::format("tensor {}: {} in the place of {}",
                                               entries_.back().name, what, expected()));
    }
  }
  std::string_view expected() const {
    if (at_ == At::kTop) return "its description";
    if (field_ == Field::kDtype) return "the name of a dtype";
    return "a list of whole numbers";
  }

  std::vector<RawEntry>& entries_;
  std::map<std::string, std::string>& metadata_;
  std::unordered_set<std::string> names_;
  std::string metadata_key_;
  At at_ = At::kOutside;
  Field field_ = Field::kNone;
  bool in_metadata_ = false;
};

// Keeps "weight_map" and skips whatever else the document holds.
class IndexHandler final : public Handler {
 public:
  std::vector<ShardedName> take() { return std::move(names_); }
  bool found_map() const { return found_map_; }

  bool null() override { return value("null"); }
  bool boolean(bool /*value*/) override { return value("true or false"); }
  bool number_integer(number_integer_t /*value*/) override { return value("a number"); }
  bool number_unsigned(number_unsigned_t /*value*/) override { return value("a number"); }
  bool number_float(number_float_t /*value*/, const string_t& /*text*/) override {
    return value("a number");
  }
  bool string(string_t& file) override {
    if (!in_map() || depth_ != 2) return value("a string");
    if (!is_plain_file_name(file)) {
      return fail(fmt::format("tensor {}: \"{}\" is not the name of a file in this directory",
                              names_.back().tensor, file));
    }
    names_.back().file = file;
    return true;
  }
  bool start_object(std::size_t /*size*/) override { return open("an object"); }
  bool end_object() override { return close(); }
  bool start_array(std::size_t /*size*/) override { return open("a list"); }
  bool end_array() override { return close(); }

  bool key(string_t& name) override {
    if (depth_ == 1) {
      field_ = name == "weight_map" ? "weight_map" : "";
      if (in_map() && found_map_) return fail("weight_map is given twice");
      found_map_ = found_map_ || in_map();
      return true;
    }
    if (!in_map()) return true;
    if (name.empty()) return fail("weight_map: a tensor without a name");
    if (!seen_.insert(name).second) return fail(fmt::format("tensor {} is listed twice", name));
    names_.push_back({name, {}});
    return true;
  }

 private:
  static constexpr int kMaxDepth = 32;

  bool in_map() const { return !field_.empty(); }
  bool value(std::string_view what) { return depth_ == 0 || in_map() ? unexpected(what) : true; }
  bool open(std::string_view what) {
    const bool is_list = what == "a list";
    if (depth_ == 0 && is_list) return unexpected(what);
    if (in_map() && (depth_ != 1 || is_list)) return unexpected(what);
    if (++depth_ > kMaxDepth) return fail("nested too deeply");
    return true;
  }
  bool close() {
    if (--depth_ == 1) field_.clear();
    return true;
  }
  bool unexpected(std::string_view what) override {
    if (depth_ == 0) return fail(fmt::format("must be a JSON object, is {}", what));
    if (depth_ == 1) return fail(fmt::format("weight_map must be an object, is {}", what));
    return fail(
        fmt::format("tensor {}: {} in the place of a file name", names_.back().tensor, what));
  }

  std::vector<ShardedName> names_;
  std::unordered_set<std::string> seen_;
  std::string field_;
  int depth_ = 0;
  bool found_map_ = false;
};

}  // namespace

Status parse_header_json(std::string_view json, std::vector<RawEntry>& entries,
                         std::map<std::string, std::string>& metadata) {
  return HeaderHandler(entries, metadata).run(json);
}

Result<std::vector<ShardedName>> parse_safetensors_index(std::string_view json) {
  IndexHandler handler;
  RETURN_IF_ERROR(handler.run(json));
  if (!handler.found_map()) return make_error(ErrorCode::kCorrupt, "weight_map is missing");
  return handler.take();
}

}  // namespace stoker::storage
