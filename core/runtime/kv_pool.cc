#include "core/runtime/kv_pool.h"

#include <utility>

namespace stoker {
namespace {

Result<Tensor> allocate_rows(Backend& backend, const KvRow& row, std::int64_t num_rows) {
  const KvMatrix matrix = kv_matrix(backend.kv_format(), row);
  return backend.allocate(matrix.dtype, num_rows, matrix.cols);
}

}  // namespace

Result<std::unique_ptr<KvPool>> KvPool::create(const ModelConfig& config,
                                               const Placement& placement, int num_pages) {
  CHECK(num_pages > 0, "num_pages {}", num_pages);
  auto pool = std::unique_ptr<KvPool>(new KvPool(placement, num_pages));
  pool->state(KvStream::kLatent).row = latent_row(config.attention_dims());
  if (const auto indexer = config.indexer_dims()) {
    pool->state(KvStream::kIndex).row = index_key_row(*indexer);
  }
  const std::int64_t rows = static_cast<std::int64_t>(num_pages) * kPageTokens;
  int index = 0;
  for (const LayerSpec& spec : config.layers()) {
    if (spec.role != LayerRole::kMain) continue;
    Backend& backend = placement.dense(index++);
    RETURN_IF_ERROR(config.check_kv_format(backend.kv_format()));
    ASSIGN_OR_RETURN(Tensor latents,
                     allocate_rows(backend, pool->state(KvStream::kLatent).row, rows),
                     "reserving the KV cache");
    pool->state(KvStream::kLatent).layers.push_back(std::move(latents));
    pool->state(KvStream::kLatent).used = true;
    Tensor keys;
    if (spec.attention == AttentionKind::kMlaSparse) {
      ASSIGN_OR_RETURN(keys, allocate_rows(backend, pool->state(KvStream::kIndex).row, rows),
                       "reserving the indexer key cache");
      pool->state(KvStream::kIndex).used = true;
    }
    pool->state(KvStream::kIndex).layers.push_back(std::move(keys));
  }
  for (Stream& stream : pool->streams_) {
    if (!stream.used) continue;
    stream.num_holders.assign(num_pages, 0);
    stream.free.reserve(num_pages);
    for (std::int32_t page = num_pages - 1; page >= 0; --page) stream.free.push_back(page);
  }
  return pool;
}

std::array<std::int64_t, kNumKvStreams> KvPool::page_bytes(const ModelConfig& config,
                                                           KvFormat format, const LayerSpec& spec) {
  const std::int64_t both = config.kv_bytes_per_token(format, spec);
  const std::int64_t latent = kv_matrix(format, latent_row(config.attention_dims())).row_bytes();
  return {latent * kPageTokens, (both - latent) * kPageTokens};
}

std::int64_t KvPool::bytes() const {
  std::int64_t total = 0;
  for (const Stream& stream : streams_) {
    for (const Tensor& layer : stream.layers)
      total += static_cast<std::int64_t>(layer.view().bytes());
  }
  return total;
}

std::int32_t KvPool::take(Stream& stream) {
  CHECK(!stream.free.empty(), "no free page");
  const std::int32_t page = stream.free.back();
  stream.free.pop_back();
  stream.num_holders[page] = 1;
  return page;
}

void KvPool::drop(Stream& stream, std::int32_t page) {
  if (--stream.num_holders[page] == 0) stream.free.push_back(page);
}

void KvPool::copy_page(Stream& stream, std::int32_t dst, std::int32_t src) {
  const auto rows = [](const Tensor& layer, std::int32_t page) {
    return layer.view().row_slice(static_cast<std::int64_t>(page) * kPageTokens, kPageTokens);
  };
  for (int index = 0; index < placement_.num_layers(); ++index) {
    const Tensor& layer = stream.layers[static_cast<std::size_t>(index)];
    if (!layer.empty()) placement_.dense(index).copy(rows(layer, dst), rows(layer, src));
  }
}

KvSequence::KvSequence(KvPool& pool) : pool_(&pool) {
  for (Table& table : tables_) table.reserve(pool.num_pages());
}

KvSequence::KvSequence(KvSequence&& other) noexcept
    : pool_(std::exchange(other.pool_, nullptr)),
      length_(std::exchange(other.length_, 0)),
      tables_(std::move(other.tables_)) {}

KvSequence& KvSequence::operator=(KvSequence&& other) noexcept {
  if (this != &other) {
    if (pool_ != nullptr) release_from(0);
    pool_ = std::exchange(other.pool_, nullptr);
    length_ = std::exchange(other.length_, 0);
    tables_ = std::move(other.tables_);
  }
  return *this;
}

KvSequence::~KvSequence() {
  if (pool_ != nullptr) release_from(0);
}

int KvSequence::pages_to_take(const KvPool::Stream& stream, const Table& table, int count) const {
  int needed = pages_for(length_ + count) - static_cast<int>(table.size());
  if (needed < 0) needed = 0;
  const int first_written = length_ / kPageTokens;
  for (int i = first_written; i < static_cast<int>(table.size()) && count > 0; ++i) {
    if (stream.num_holders[table[i]] > 1) ++needed;
  }
  return needed;
}

Status KvSequence::reserve(int count) {
  for (int s = 0; s < kNumKvStreams; ++s) {
    const KvPool::Stream& stream = pool_->streams_[s];
    if (!stream.used) continue;
    const int needed = pages_to_take(stream, tables_[s], count);
    if (needed > static_cast<int>(stream.free.size())) {
      return make_error(ErrorCode::kResource,
                        "the context is full: {} tokens cached, {} more need {} pages of {} "
                        "tokens, {} are free; start "
                        "with a larger --ctx or a shorter conversation",
                        length_, count, needed, kPageTokens, stream.free.size());
    }
  }
  for (int s = 0; s < kNumKvStreams && count > 0; ++s) {
    KvPool::Stream& stream = pool_->streams_[s];
    if (!stream.used) continue;
    Table& table = tables_[s];
    for (std::size_t i = length_ / kPageTokens; i < table.size(); ++i) {
      if (stream.num_holders[table[i]] == 1) continue;
      const std::int32_t own = pool_->take(stream);
      pool_->copy_page(stream, own, table[i]);
      pool_->drop(stream, table[i]);
      table[i] = own;
    }
    while (static_cast<int>(table.size()) < pages_for(length_ + count))
      table.push_back(pool_->take(stream));
  }
  return {};
}

void KvSequence::commit(int count) {
  CHECK(count >= 0, "commit({})", count);
  length_ += count;
  for (int s = 0; s < kNumKvStreams; ++s) {
    CHECK(!pool_->streams_[s].used || pages_for(length_) <= static_cast<int>(tables_[s].size()),
          "committed {} positions, reserved {} pages", length_, tables_[s].size());
  }
}

void KvSequence::rewind(int length) {
  CHECK(length >= 0 && length <= length_, "rewind({}) of {}", length, length_);
  length_ = length;
  release_from(pages_for(length));
}

void KvSequence::release_from(int num_pages) {
  for (int s = 0; s < kNumKvStreams; ++s) {
    Table& table = tables_[s];
    while (static_cast<int>(table.size()) > num_pages) {
      pool_->drop(pool_->streams_[s], table.back());
      table.pop_back();
    }
  }
}

KvSequence KvSequence::fork() const {
  KvSequence copy(*pool_);
  copy.length_ = length_;
  for (int s = 0; s < kNumKvStreams; ++s) {
    KvPool::Stream& stream = pool_->streams_[s];
    if (!stream.used) continue;
    // Pages reserved but not committed stay with the original.
    for (int i = 0; i < pages_for(length_); ++i) {
      copy.tables_[s].push_back(tables_[s][i]);
      ++stream.num_holders[tables_[s][i]];
    }
  }
  return copy;
}

SequencePages KvSequence::pages() const { return {tables_[0], tables_[1]}; }

}  // namespace stoker
