#include "core/runtime/kv_pool.h"

#include <gtest/gtest.h>

#include "cpu/reference_backend.h"
#include "tests/support/published_configs.h"

namespace stoker {
namespace {

class KvPoolTest : public testing::Test {
 protected:
  KvPoolTest()
      : config_(ModelConfig::parse(test::tiny_config()).value()),
        placement_(Placement::on_one(backend_, config_.num_hidden_layers)),
        pool_(KvPool::create(config_, placement_, 4).value()) {}

  int num_free() const { return pool_->num_free(KvStream::kLatent); }

  ReferenceBackend backend_;
  ModelConfig config_;
  Placement placement_;
  std::unique_ptr<KvPool> pool_;
};

TEST_F(KvPoolTest, PagesComeAndGo) {
  KvSequence kv(*pool_);
  ASSERT_TRUE(kv.reserve(65).ok());
  EXPECT_EQ(num_free(), 2);
  EXPECT_EQ(kv.length(), 0);
  kv.commit(65);
  EXPECT_EQ(kv.length(), 65);
  EXPECT_EQ(kv.pages().latent.size(), 2u);
  EXPECT_EQ(kv.pages().index.size(), 2u);
  kv.rewind(64);
  EXPECT_EQ(num_free(), 3);
  {
    KvSequence moved = std::move(kv);
  }
  EXPECT_EQ(num_free(), 4);
}

TEST_F(KvPoolTest, AFullPoolRefusesWithTheNumbersAndChangesNothing) {
  KvSequence a(*pool_), b(*pool_);
  ASSERT_TRUE(a.reserve(200).ok());
  a.commit(200);
  EXPECT_EQ(num_free(), 0);
  ASSERT_TRUE(a.reserve(56).ok());
  const Status full = b.reserve(1);
  ASSERT_FALSE(full.ok());
  EXPECT_EQ(full.error().code(), ErrorCode::kResource);
  EXPECT_NE(full.error().message().find("1 more need 1 pages of 64 tokens, 0 are free"),
            std::string::npos)
      << full.error().message();
  EXPECT_EQ(b.pages().latent.size(), 0u);
}

TEST_F(KvPoolTest, AForkCopiesOnlyThePageItWritesInto) {
  KvSequence one(*pool_);
  ASSERT_TRUE(one.reserve(70).ok());
  one.commit(70);
  const TensorView rows = pool_->layer(KvStream::kLatent, 1).rows;
  const auto row_of = [&](const KvSequence& kv, int position) {
    return rows.row<float>(std::int64_t{kv.pages().latent[position / 64]} * 64 + position % 64);
  };
  row_of(one, 69)[0] = 42.0f;
  KvSequence two = one.fork();
  EXPECT_EQ(num_free(), 2);
  ASSERT_TRUE(two.reserve(1).ok());
  EXPECT_EQ(num_free(), 1);
  EXPECT_EQ(two.pages().latent[0], one.pages().latent[0]);
  EXPECT_NE(two.pages().latent[1], one.pages().latent[1]);
  EXPECT_EQ(row_of(two, 69)[0], 42.0f);
  row_of(two, 69)[0] = 1.0f;
  EXPECT_EQ(row_of(one, 69)[0], 42.0f);
  // The other one is alone with its page now.
  ASSERT_TRUE(one.reserve(1).ok());
  EXPECT_EQ(num_free(), 1);
}

TEST_F(KvPoolTest, AForkOnAPageBoundarySharesEverything) {
  KvSequence one(*pool_);
  ASSERT_TRUE(one.reserve(64).ok());
  one.commit(64);
  KvSequence two = one.fork();
  ASSERT_TRUE(two.reserve(1).ok());
  EXPECT_EQ(num_free(), 2);
  one.rewind(0);
  EXPECT_EQ(num_free(), 2);
  two.rewind(0);
  EXPECT_EQ(num_free(), 4);
}

// Says that its rows are FP8; nothing is computed here.
class Fp8Backend final : public ReferenceBackend {
 public:
  KvFormat kv_format() const override { return KvFormat::kFp8; }
};

TEST(KvPoolFormat, Fp8RowsTakeTheirBytes) {
  const ModelConfig config = ModelConfig::parse(test::tiny_config()).value();
  Fp8Backend backend;
  const Placement placement = Placement::on_one(backend, config.num_hidden_layers);
  const auto pool = KvPool::create(config, placement, 3).value();
  const KvLayer latents = pool->layer(KvStream::kLatent, 0),
                keys = pool->layer(KvStream::kIndex, 0);
  EXPECT_TRUE(latents.is_fp8() && keys.is_fp8());
  EXPECT_EQ(latents.row, (KvRow{64, 16}));
  EXPECT_EQ(latents.rows.cols, 64 + 4 + 2 * 16);
  EXPECT_EQ(keys.row, (KvRow{32, 0}));
  EXPECT_EQ(keys.rows.cols, 32 + 4);
  EXPECT_EQ(pool->bytes(), 3 * kPageTokens * config.kv_bytes_per_token(KvFormat::kFp8));
  // A shared page is copied whole.
  KvSequence one(*pool);
  ASSERT_TRUE(one.reserve(70).ok());
  one.commit(70);
  const auto last_byte = [&](const KvSequence& kv) -> std::uint8_t& {
    return latents.rows.row<std::uint8_t>(std::int64_t{kv.pages().latent[1]} * kPageTokens +
                                          5)[latents.rows.cols - 1];
  };
  last_byte(one) = 77;
  KvSequence two = one.fork();
  ASSERT_TRUE(two.reserve(1).ok());
  EXPECT_NE(two.pages().latent[1], one.pages().latent[1]);
  EXPECT_EQ(last_byte(two), 77);
}

TEST(KvPoolFormat, KeysThatCannotBeRotatedAreRefused) {
  const std::string odd = test::with_field(test::tiny_config(), "index_head_dim", "48");
  const ModelConfig config = ModelConfig::parse(odd).value();
  EXPECT_TRUE(config.check_kv_format(KvFormat::kBf16).ok());
  Fp8Backend backend;
  const Placement placement = Placement::on_one(backend, config.num_hidden_layers);
  const auto refused = KvPool::create(config, placement, 1);
  ASSERT_FALSE(refused.ok());
  EXPECT_EQ(refused.error().code(), ErrorCode::kUnsupported);
  EXPECT_NE(refused.error().message().find("this model's index_head_dim is 48"), std::string::npos)
      << refused.error().message();
  // Without an indexer there is nothing to rotate.
  const ModelConfig v3 = ModelConfig::parse(test::tiny_config("deepseek_v3")).value();
  EXPECT_TRUE(v3.check_kv_format(KvFormat::kFp8).ok());
}

}  // namespace
}  // namespace stoker
