#include "gpu/scratch.h"

#include <algorithm>
#include <map>
#include <tuple>
#include <vector>

#include "core/interface/expert_provider.h"
#include "core/model/tensor_table.h"
#include "core/runtime/kv_pool.h"
#include "gpu/expert_uploads.h"
#include "gpu/launch.h"
#include "gpu/part_graphs.h"
#include "gpu/prefill_experts.h"
#include "gpu/step_cache.h"
#include "quant/expert_block.h"

namespace stoker {
namespace gpu {
namespace {

constexpr std::int64_t kWidenedBytes = std::int64_t{128} << 20;
constexpr std::int64_t kPanelAlign = 256;  // outputs of a panel, so that its blocks are whole

// Parts of an expert that an area of uploads takes: 8 MiB, of which a copy takes much longer than
// the kernels that follow, and enough of them to keep a few dozen multiprocessors busy.
constexpr std::int64_t kPartsPerArea = 8;

struct Kind {
  std::int64_t CudaScratch::* bytes;
  DeviceBuffer ScratchBuffers::* buffer;
};
constexpr Kind kKinds[] = {
    {&CudaScratch::widened_weight, &ScratchBuffers::widened_weight},
    {&CudaScratch::linear_partials, &ScratchBuffers::linear_partials},
    {&CudaScratch::linear_counters, &ScratchBuffers::linear_counters},
    {&CudaScratch::index_scores, &ScratchBuffers::index_scores},
    {&CudaScratch::index_queries, &ScratchBuffers::index_queries},
    {&CudaScratch::attention, &ScratchBuffers::attention},
    {&CudaScratch::combine_slots, &ScratchBuffers::combine_slots},
};

// Formats that files may hold weights of linears in, for which tensor cores take other scratch.
constexpr QuantSpec kLinearSpecs[] = {{QuantFormat::kF8E4m3B128}, {QuantFormat::kBf16}};
// Those that experts come in.
constexpr QuantSpec kExpertSpecs[] = {{QuantFormat::kF32},      {QuantFormat::kF16},
                                      {QuantFormat::kBf16},     {QuantFormat::kF8E4m3B128},
                                      {QuantFormat::kInt8},     {QuantFormat::kInt4, 32},
                                      {QuantFormat::kInt4, 64}, {QuantFormat::kInt4, 128}};

// Linears of the dense part, and the head.
void add_linears(const ModelConfig& config, WorkspaceLimits limits, DType activations,
                 CudaScratch& scratch) {
  const std::int64_t most_rows = std::max(limits.max_rows, limits.max_logit_rows);
  const std::vector<TensorSpec> tensors = tensor_table(config);
  for (const QuantSpec& spec : kLinearSpecs) {
    // Those that the forward pass joins are of one layer, of its attention or of one feed-forward,
    // and have the same inputs.
    std::map<std::tuple<int, TensorCategory, std::int64_t>, LinearScratchSize> joined;
    for (const TensorSpec& tensor : tensors) {
      if (tensor.is_vector() || tensor.category == TensorCategory::kEmbedding ||
          tensor.category == TensorCategory::kRoutedExperts ||
          tensor.category == TensorCategory::kMtp) {
        continue;
      }
      QuantView weight;
      weight.rows = tensor.rows;
      weight.cols = tensor.cols;
      weight.spec = spec;
      if (!suits_linear_few(weight, activations)) continue;
      const TensorCategory module = tensor.category == TensorCategory::kIndexer
                                        ? TensorCategory::kAttention
                                        : tensor.category;
      joined[{tensor.layer, module, tensor.cols}] += linear_few_scratch(weight, most_rows);
      scratch.widened_weight =
          std::max(scratch.widened_weight, widened_bytes(weight.rows, weight.cols));
    }
    for (const auto& [inputs, size] : joined) {
      scratch.linear_partials = std::max(scratch.linear_partials, size.partial_bytes);
      scratch.linear_counters = std::max(scratch.linear_counters, size.counter_bytes);
    }
  }
}

// The largest part of an expert of the model, in any format.
struct LargestPart {
  std::int64_t bytes = 0;
  std::int64_t items = 0;  // of prefill, for up to kExpertManyRows rows
};
LargestPart largest_part(const ModelConfig& config, int inter_size) {
  LargestPart largest;
  for (const QuantSpec& spec : kExpertSpecs) {
    const quant::ExpertBlocks blocks(config.hidden_size, inter_size, spec);
    for (const int index : {0, blocks.num_gate_up_blocks()}) {  // the first of a half is whole
      const quant::ExpertBlocks::Block block = blocks.block(index);
      const bool gate_up = block.half == ExpertHalf::kGateUp;
      QuantView matrix;
      matrix.rows = block.num_rows;
      matrix.cols = gate_up ? config.hidden_size : inter_size;
      matrix.spec = spec;
      largest.bytes =
          std::max(largest.bytes, (gate_up ? 2 : 1) * ExpertUploads::bytes_needed(matrix));
      largest.items = std::max(largest.items, PrefillExperts::items_of(matrix, gate_up));
    }
  }
  return largest;
}

}  // namespace

Status ScratchBuffers::reserve(const CudaScratch& sizes) {
  for (const Kind& kind : kKinds) {
    RETURN_IF_ERROR((this->*kind.buffer).grow(sizes.*kind.bytes), "scratch");
  }
  return {};
}

CudaScratch ScratchBuffers::held() const {
  CudaScratch held;
  for (const Kind& kind : kKinds) held.*kind.bytes = (this->*kind.buffer).bytes();
  return held;
}

ScratchBuffers::Allocations ScratchBuffers::allocations() const {
  static_assert(std::size(kKinds) == std::tuple_size_v<Allocations>);
  Allocations allocations;
  for (std::size_t i = 0; i < allocations.size(); ++i) {
    allocations[i] = (this->*kKinds[i].buffer).allocation();
  }
  return allocations;
}

std::int64_t widened_rows(std::int64_t rows, std::int64_t cols) {
  const std::int64_t panel_rows = std::max(std::int64_t{quant::kTileRows},
                                           kWidenedBytes / (2 * cols) / kPanelAlign * kPanelAlign);
  return std::min(panel_rows, rows);
}

std::int64_t widened_bytes(std::int64_t rows, std::int64_t cols) {
  return widened_rows(rows, cols) * cols * 2;
}

std::int64_t score_stride(int most_visible) { return (std::int64_t{most_visible} + 3) / 4 * 4; }

std::int64_t score_bytes(int num_rows, int most_visible) {
  return num_rows * score_stride(most_visible) * 4;
}

std::int64_t index_query_bytes(int num_rows, std::int64_t cols) { return num_rows * cols * 2; }

std::int64_t combine_bytes(std::int64_t num_choices) { return 2 * num_choices * 4; }

}  // namespace gpu

CudaScratch cuda_scratch(const ModelConfig& config, WorkspaceLimits limits, int context_tokens,
                         const CudaBackendOptions& options) {
  using namespace gpu;
  // How linears are cut depends on the device.
  if (!check_gpu(options.device).ok() || !use_device(options.device).ok()) return {};
  const int num_rows = limits.max_rows;
  // A sequence has no more than all pages, and a step that goes past the model's positions is
  // refused.
  const int pages = pages_for(context_tokens);
  const int positions = std::min(config.max_position_embeddings, pages * kPageTokens);
  const DType activations = options.activations;
  CudaScratch scratch;
  add_linears(config, limits, activations, scratch);
  int streams = 1;
  if (const auto dims = config.indexer_dims()) {
    streams = 2;
    const int at_once = std::min(num_rows, kScoreRows);
    if (positions > dims->top_k) {
      // Launches of a few decoded rows are made for more positions than there are.
      scratch.index_scores = std::max(score_bytes(at_once, positions),
                                      score_bytes(std::min(at_once, kMostPartRows),
                                                  visible_range(positions, dims->top_k).last));
      if (options.kv_format == KvFormat::kFp8) {
        scratch.index_queries =
            index_query_bytes(at_once, std::int64_t{dims->num_heads} * dims->head_dim);
      }
    }
  }
  const AttentionDims attention = config.attention_dims();
  scratch.attention = attend_scratch_bound(
      attention, activations, kv_matrix(options.kv_format, latent_row(attention)).dtype, num_rows);
  const ExpertWidths widths = expert_widths(config);
  if (widths.moe > 0) {
    scratch.combine_slots = combine_bytes(std::int64_t{num_rows} * widths.top_k);
    const LargestPart part = largest_part(config, widths.moe);
    scratch.expert_uploads = ExpertUploads::buffer_bytes(kPartsPerArea * part.bytes);
    if (activations == DType::kBf16) {
      const std::int64_t groups = (num_rows + kExpertManyRows - 1) / kExpertManyRows;
      scratch.expert_tables = PrefillExperts::bytes_needed(
          kPartsAtOnce, kPartsAtOnce * part.items * groups, std::int64_t{num_rows} * widths.top_k);
    }
  }
  // Sequences may share their pages, so each may have all of them.
  const std::int64_t sequences = std::min(num_rows, limits.max_logit_rows);
  scratch.step_tables = kReservedSteps * step_table_bytes(num_rows, limits.max_logit_rows,
                                                          streams * sequences * pages);
  return scratch;
}

}  // namespace stoker
