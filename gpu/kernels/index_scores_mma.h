// Indexer scores on tensor cores, for BF16 and the head size that all published indexers share.
#pragma once

#include "gpu/launch.h"

namespace stoker::gpu {

inline constexpr int kIndexDim = 128;
inline constexpr int kMostIndexHeads = 128;

bool scores_on_tensor_cores(const IndexScoreParams& params);
// Requires: scores_on_tensor_cores(), and rows with more than top_k visible positions.
Status launch_index_scores_mma(const IndexScoreParams& params, const Stream& stream);

}  // namespace stoker::gpu
