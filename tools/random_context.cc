#include "tools/random_context.h"

#include <algorithm>
#include <cstring>
#include <random>
#include <vector>

#include "quant/kv_rows.h"

namespace stoker::tools {
namespace {

constexpr int kRowsAtOnce = 4096;

// Uniform over [-sqrt(3), sqrt(3)]: of variance 1.
class Values {
 public:
  float next() {
    constexpr float kHalfWidth = 1.7320508F;
    return (static_cast<float>(random_()) / static_cast<float>(std::minstd_rand::max()) * 2 - 1) *
           kHalfWidth;
  }

 private:
  std::minstd_rand random_{20261130};
};

void write_row(const KvLayer& layer, Values& values, std::vector<float>& scratch, std::byte* out) {
  const int count = layer.row.num_values();
  scratch.resize(static_cast<std::size_t>(count));
  for (float& value : scratch) value = values.next();
  switch (layer.rows.dtype) {
    case DType::kU8:
      quant::encode_kv_row(layer.row, scratch.data(), out);
      break;
    case DType::kBf16:
      for (int i = 0; i < count; ++i) {
        const bf16 value = to_bf16(scratch[static_cast<std::size_t>(i)]);
        std::memcpy(out + 2 * i, &value, sizeof value);
      }
      break;
    default:
      std::memcpy(out, scratch.data(), scratch.size() * sizeof(float));
  }
}

}  // namespace

Status append_random_context(Runner& runner, KvSequence& kv, int num_tokens) {
  const int begin = kv.length();
  RETURN_IF_ERROR(kv.reserve(num_tokens));
  kv.commit(num_tokens);
  const KvPool& pool = runner.kv_pool();
  const Placement& placement = runner.engine().placement();
  const SequencePages pages = kv.pages();
  Values values;
  std::vector<float> scratch;
  std::vector<std::byte> rows;
  for (const KvStream stream : {KvStream::kLatent, KvStream::kIndex}) {
    if (!pool.has_stream(stream)) continue;
    const std::span<const std::int32_t> table =
        stream == KvStream::kLatent ? pages.latent : pages.index;
    for (int first = begin; first < kv.length();) {
      // 1. Rows of whole pages, but for the first and last; they are the same in every layer.
      const int count = std::min(kRowsAtOnce - first % kPageTokens, kv.length() - first);
      std::int64_t row_bytes = 0;
      for (int layer = 0; layer < placement.num_layers(); ++layer) {
        const KvLayer cached = pool.layer(stream, layer);
        if (cached.rows.empty()) continue;
        Backend& backend = placement.dense(layer);
        if (row_bytes == 0) {
          row_bytes = cached.rows.cols * dtype_bytes(cached.rows.dtype);
          rows.resize(static_cast<std::size_t>(count * row_bytes));
          for (int i = 0; i < count; ++i) {
            write_row(cached, values, scratch, rows.data() + i * row_bytes);
          }
        }
        // 2. Page by page to where they belong.
        for (int i = 0; i < count;) {
          const int position = first + i;
          const int on_page = std::min(kPageTokens - position % kPageTokens, count - i);
          const std::int64_t row =
              std::int64_t{table[static_cast<std::size_t>(position / kPageTokens)]} * kPageTokens +
              position % kPageTokens;
          backend.copy_in(cached.rows.row_slice(row, on_page), rows.data() + i * row_bytes);
          i += on_page;
        }
      }
      // 3. The next rows are written over these.
      for (Backend* const backend : placement.backends()) RETURN_IF_ERROR(backend->finish());
      first += count;
    }
  }
  return {};
}

}  // namespace stoker::tools
