#include "storage/expert_shards.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <cstring>
#include <random>

#include "tests/support/aligned_memory.h"

namespace stoker::storage {
namespace {

struct Case {
  QuantFormat format;
  std::int64_t hidden, inter;
  friend void PrintTo(const Case& c, std::ostream* out) {
    *out << quant_format_name(c.format) << " " << c.hidden << " x " << c.inter;
  }
};

StoredType stored_type(QuantFormat format) {
  switch (format) {
    case QuantFormat::kF32:
      return StoredType::kF32;
    case QuantFormat::kF16:
      return StoredType::kF16;
    case QuantFormat::kBf16:
      return StoredType::kBf16;
    default:
      return StoredType::kF8E4m3;
  }
}

// Two shards with the tensors of a few experts, at any byte, some side by side, some apart.
class Shards : public ::testing::TestWithParam<Case> {
 protected:
  static constexpr int kExperts = 3;

  Shards() : shards_(GetParam().hidden, GetParam().inter, spec()) {
    tensors_.reserve(6 * kExperts);
    for (int expert = 0; expert < kExperts; ++expert) {
      ExpertShards::Expert tensors;
      for (std::size_t i = 0; i < 3; ++i) {
        const std::int64_t rows = i < 2 ? GetParam().inter : GetParam().hidden;
        const std::int64_t cols = i < 2 ? GetParam().hidden : GetParam().inter;
        tensors.weights[i] = add(stored_type(GetParam().format), rows, cols);
        if (spec().has_scales()) {
          tensors.scales[i] = add(StoredType::kF32, (rows + 127) / 128, (cols + 127) / 128);
        }
      }
      shards_.add(tensors);
    }
  }

  static QuantSpec spec() {
    QuantSpec spec;
    spec.format = GetParam().format;
    return spec;
  }

  const StoredTensor* add(StoredType type, std::int64_t rows, std::int64_t cols) {
    StoredTensor tensor;
    tensor.file = static_cast<int>(random_() % 2);
    tensor.type = type;
    tensor.rows = rows;
    tensor.cols = cols;
    tensor.rank = 2;
    tensor.bytes = rows * cols * stored_type_info(type).bytes;
    std::vector<std::byte>& file = files_[static_cast<std::size_t>(tensor.file)];
    if (random_() % 2 == 0) file.resize(file.size() + random_() % 9000);
    tensor.offset = std::ssize(file);
    file.resize(file.size() + static_cast<std::size_t>(tensor.bytes));
    const std::int64_t width = stored_type_info(type).bytes;
    for (std::int64_t at = tensor.offset; at < std::ssize(file); ++at) {
      file[static_cast<std::size_t>(at)] = static_cast<std::byte>(random_());
      // The top byte of each element keeps its exponent from being all ones.
      if ((at - tensor.offset) % width == width - 1)
        file[static_cast<std::size_t>(at)] &= std::byte{0xbb};
    }
    tensors_.push_back(tensor);
    return &tensors_.back();
  }

  // A row-major view over an aligned copy.
  QuantView view(int expert, std::size_t projection, std::vector<test::AlignedMemory>& keep) const {
    const StoredTensor& weight = tensor(expert, projection, false);
    const auto copy = [&](const StoredTensor& from) {
      keep.emplace_back(from.bytes);
      std::memcpy(keep.back().data(), bytes_of(from), static_cast<std::size_t>(from.bytes));
      return keep.back().data();
    };
    QuantView view;
    view.payload = copy(weight);
    if (spec().has_scales()) {
      view.scales = copy(tensor(expert, projection, true));
    }
    view.rows = weight.rows;
    view.cols = weight.cols;
    view.spec = spec();
    return view;
  }
  const StoredTensor& tensor(int expert, std::size_t projection, bool scale) const {
    const std::size_t per_weight = spec().has_scales() ? 2 : 1;
    return tensors_[(static_cast<std::size_t>(expert) * 3 + projection) * per_weight +
                    (scale ? 1 : 0)];
  }
  const std::byte* bytes_of(const StoredTensor& tensor) const {
    return files_[static_cast<std::size_t>(tensor.file)].data() + tensor.offset;
  }
  std::byte* bytes_of(const StoredTensor& tensor) {
    return files_[static_cast<std::size_t>(tensor.file)].data() + tensor.offset;
  }

  // What a reader does: holds the extents against their contract, then fills the block's place.
  test::AlignedMemory read(int expert, int block) const {
    std::array<Extent, kMaxExtents> extents;
    const int count = shards_.extents(expert, block, extents);
    EXPECT_GT(count, 0);
    EXPECT_LE(count, kMaxExtents);
    test::AlignedMemory place(shards_.block_bytes(block));
    std::int64_t end = 0;
    for (int i = 0; i < count; ++i) {
      const Extent& extent = extents[static_cast<std::size_t>(i)];
      EXPECT_EQ(extent.offset % kExtentAlign, 0);
      EXPECT_EQ(extent.bytes % kExtentAlign, 0);
      EXPECT_EQ(extent.dst_offset, end);
      end += extent.bytes;
      EXPECT_LE(end, shards_.block_bytes(block));
      const std::vector<std::byte>& file = files_[static_cast<std::size_t>(extent.file)];
      EXPECT_LT(extent.offset, std::ssize(file));
      std::memcpy(
          place.data() + extent.dst_offset, file.data() + extent.offset,
          static_cast<std::size_t>(std::min(extent.bytes, std::ssize(file) - extent.offset)));
    }
    return place;
  }

  std::mt19937 random_{5};
  std::array<std::vector<std::byte>, 2> files_;
  std::vector<StoredTensor> tensors_;
  ExpertShards shards_;
};

TEST_P(Shards, LandAsTheyWouldBeWritten) {
  for (int expert = 0; expert < kExperts; ++expert) {
    std::vector<test::AlignedMemory> keep;
    keep.reserve(6);
    const QuantView gate = view(expert, 0, keep), up = view(expert, 1, keep),
                    down = view(expert, 2, keep);
    for (int block = 0; block < shards_.blocks().num_blocks(); ++block) {
      const test::AlignedMemory place = read(expert, block);
      ASSERT_FALSE(shards_.land(expert, block, place.data()).has_value());
      const std::int64_t bytes = shards_.blocks().block(block).bytes;
      ASSERT_LE(bytes, shards_.block_bytes(block));
      const test::AlignedMemory want(bytes);
      shards_.blocks().write(block, gate, up, down, want.data());
      ASSERT_EQ(std::memcmp(place.data(), want.data(), static_cast<std::size_t>(bytes)), 0)
          << "expert " << expert << " block " << block;
    }
  }
}

TEST_P(Shards, BlocksLieOneAfterAnother) {
  std::int64_t at = 0;
  for (int block = 0; block < shards_.blocks().num_blocks(); ++block) {
    EXPECT_EQ(shards_.block_offset(block), at);
    EXPECT_EQ(shards_.block_bytes(block) % kExtentAlign, 0);
    at += shards_.block_bytes(block);
  }
  EXPECT_EQ(shards_.slot_bytes(), at);
}

TEST_P(Shards, ABadValueIsFoundWhereItIs) {
  for (std::size_t projection = 0; projection < 3; ++projection) {
    for (const bool scale : {false, true}) {
      if (scale && !spec().has_scales()) continue;
      const StoredTensor& tensor = this->tensor(1, projection, scale);
      const std::int64_t width = stored_type_info(tensor.type).bytes;
      const std::int64_t row = tensor.rows - 1, col = tensor.cols / 2;
      std::byte* const value = bytes_of(tensor) + row * tensor.row_bytes() + col * width;
      std::array<std::byte, 4> kept{};
      std::memcpy(kept.data(), value, static_cast<std::size_t>(width));
      std::memset(value, 0xff, static_cast<std::size_t>(width));
      std::optional<ExpertShards::BadValue> found;
      for (int block = 0; block < shards_.blocks().num_blocks() && !found; ++block) {
        const test::AlignedMemory place = read(1, block);
        found = shards_.land(1, block, place.data());
      }
      ASSERT_TRUE(found.has_value());
      EXPECT_EQ(found->projection, static_cast<int>(projection));
      EXPECT_EQ(found->scale, scale);
      EXPECT_EQ(found->row, row);
      EXPECT_EQ(found->col, col);
      std::memcpy(value, kept.data(), static_cast<std::size_t>(width));
    }
  }
}

// Many blocks, blocks that begin in the middle of a row of scales, rows of odd length, matrices
// smaller than a tile.
INSTANTIATE_TEST_SUITE_P(Forms, Shards,
                         ::testing::Values(Case{QuantFormat::kF8E4m3B128, 1800, 700},
                                           Case{QuantFormat::kF8E4m3B128, 3001, 407},
                                           Case{QuantFormat::kF8E4m3B128, 9, 5},
                                           Case{QuantFormat::kBf16, 1203, 999},
                                           Case{QuantFormat::kF16, 777, 1025},
                                           Case{QuantFormat::kF32, 501, 1111},
                                           Case{QuantFormat::kF32, 16, 3}));

}  // namespace
}  // namespace stoker::storage
