// Linears of few rows of large FP8 matrices, which a block streams through shared memory:
// streams_linear() says which. linear_few.cu hands them on.
#pragma once

#include "gpu/launch.h"

namespace stoker::gpu {

LinearScratchSize linear_stream_scratch(const QuantView& weight, std::int64_t rows);
// Requires: outputs that have been checked, of matrices that are to be streamed.
Status launch_linear_stream(const LinearFewParams& params, const Stream& stream);

}  // namespace stoker::gpu
