// Holds the tensors of files against what a config implies: names, shapes, dtypes, scales.
#pragma once

#include <filesystem>
#include <set>
#include <string>
#include <string_view>
#include <unordered_set>
#include <vector>

#include "core/base/error.h"
#include "core/model/model_config.h"
#include "core/model/tensor_table.h"
#include "storage/tensor_files.h"

namespace stoker::storage {

// Which tensors are to be there.
enum class TensorScope : std::uint8_t { kAll, kAllButRoutedExperts };

class TensorCheck {
 public:
  // `dir` is what messages name where no file can be. The arguments must outlive this.
  TensorCheck(const std::filesystem::path& dir, const ModelConfig& config, TensorScope scope,
              TensorFiles& tensors);

  // Everything at once; errors name file and tensor and say what to do. Tensors that are no part of
  // the model and do no harm are marked as ignored and mentioned in notices().
  Status run();

  // What the config implies and the files hold: table() without layers that are absent.
  const std::vector<TensorSpec>& found() const { return found_; }
  // Draft layers that the config promises and the files lack.
  const std::unordered_set<int>& absent_drafts() const { return absent_drafts_; }
  const CategoryBytes& category_bytes() const { return category_bytes_; }
  std::int64_t dense_bytes() const { return dense_bytes_; }
  const std::vector<std::string>& notices() const { return notices_; }

 private:
  Status find_drafts();
  Status check(const TensorSpec& spec);
  Status check_scale(const TensorSpec& spec, const StoredTensor& weight);
  Status check_unknown();
  void count(const TensorSpec& spec, const StoredTensor& tensor);
  Error wrong(std::string_view name, std::string what) const;
  std::string where(std::string_view name) const;

  const std::filesystem::path& dir_;
  const ModelConfig& config_;
  const TensorScope scope_;
  TensorFiles& tensors_;
  std::vector<TensorSpec> found_;
  std::unordered_set<int> absent_drafts_;
  std::unordered_set<const StoredTensor*> known_;  // claimed by the table
  CategoryBytes category_bytes_{};
  std::int64_t dense_bytes_ = 0;
  std::vector<std::string> notices_;
};

}  // namespace stoker::storage
