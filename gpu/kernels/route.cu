#include <climits>
#include <cmath>

#include "core/tensor/order_key.h"
#include "gpu/error.h"
#include "gpu/kernels/common/overlap.cuh"
#include "gpu/kernels/common/reduce.cuh"
#include "gpu/kernels/common/rows.cuh"
#include "gpu/launch.h"
#include "quant/defined_arithmetic.h"

namespace stoker::gpu {
namespace {

// Sum of the two largest of values[0 .. n).
__device__ float top_two(const float* values, int n) {
  if (n == 1) return values[0];
  float first = fmaxf(values[0], values[1]), second = fminf(values[0], values[1]);
  for (int i = 2; i < n; ++i) {
    second = fmaxf(second, fminf(first, values[i]));
    first = fmaxf(first, values[i]);
  }
  return first + second;
}

// The largest of values[0 .. n), then the largest of the others, and so on, by a warp. Each lane
// keeps the best of every kWarp-th value, so that only one has to look at its own again.
class LargestFirst {
 public:
  __device__ LargestFirst(float* values, int n) : values_(values), n_(n) { look(); }

  // Its index, the lowest if there are several; the same for every lane. The value becomes -inf.
  __device__ int take() {
    const unsigned key = __reduce_max_sync(kAllLanes, key_);
    const int index = static_cast<int>(
        __reduce_min_sync(kAllLanes, key_ == key ? static_cast<unsigned>(index_) : UINT_MAX));
    if (index == index_) {
      values_[index] = -INFINITY;
      look();
    }
    return index;
  }

 private:
  __device__ void look() {
    key_ = 0;
    index_ = INT_MAX;
    for (int i = static_cast<int>(threadIdx.x); i < n_; i += kWarp) {
      const unsigned key = order_key(values_[i]);
      if (index_ == INT_MAX || key > key_) {
        key_ = key;
        index_ = i;
      }
    }
  }
  float* const values_;
  const int n_;
  unsigned key_;
  int index_;
};

constexpr int kBatch = 8;  // experts of a lane that are on their way at once

// One warp per row. Shared memory: gates [num_experts], choice scores [num_experts], group scores
// [num_groups], kept groups [num_groups], chosen experts [top_k].
__global__ void __launch_bounds__(kWarp) route(RouteRowsParams p) {
  extern __shared__ float shared[];
  const int num_experts = p.spec.num_experts, num_groups = p.spec.num_groups;
  const int top_k = p.spec.top_k;
  float* gates = shared;
  float* scores = gates + num_experts;
  float* groups = scores + num_experts;
  float* kept = groups + num_groups;
  auto* const experts = reinterpret_cast<std::int32_t*>(kept + num_groups);
  const std::int64_t row = blockIdx.x;
  const int lane = static_cast<int>(threadIdx.x);
  prefetch_block(p.bias.data, num_experts * 4);
  wait_for_previous();
  start_next();  // what follows may be a sibling
  for (int begin = lane; begin < num_experts; begin += kBatch * kWarp) {
    float logits[kBatch], bias[kBatch];
    load_batch(p.logits, row, begin, kWarp, logits);
    load_batch(p.bias, 0, begin, kWarp, bias);
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      const int e = begin + i * kWarp;
      if (e >= num_experts) break;
      gates[e] = __fdiv_rn(1.0f, __fadd_rn(1.0f, quant::exp_defined(-logits[i])));
      scores[e] = gates[e] + bias[i];
    }
  }
  __syncwarp();
  if (p.forced != nullptr) {
    for (int i = lane; i < top_k; i += kWarp) experts[i] = p.forced[row * top_k + i];
  } else {
    // 1. Whole groups first: all but the best drop out.
    const int group_size = num_experts / num_groups;
    for (int g = lane; g < num_groups; g += kWarp) {
      groups[g] = top_two(scores + g * group_size, group_size);
      kept[g] = 0.0f;
    }
    __syncwarp();
    LargestFirst best_groups(groups, num_groups);
    for (int i = 0; i < p.spec.top_groups; ++i) {
      const int best = best_groups.take();
      if (lane == 0) kept[best] = 1.0f;
    }
    __syncwarp();
    for (int e = lane; e < num_experts; e += kWarp) {
      if (kept[e / group_size] == 0.0f) scores[e] = -INFINITY;
    }
    __syncwarp();
    // 2. The best experts of what is left.
    LargestFirst best_experts(scores, num_experts);
    for (int i = 0; i < top_k; ++i) {
      const int best = best_experts.take();
      if (lane == 0) experts[i] = best;
    }
  }
  __syncwarp();
  // 3. Weights, from the gates without bias, summed in order of choice.
  float sum = 0.0f;
  for (int i = 0; i < top_k; ++i) sum += gates[experts[i]];
  for (int i = lane; i < top_k; i += kWarp) {
    const float gate = gates[experts[i]];
    p.experts[row * top_k + i] = experts[i];
    p.weights[row * top_k + i] = (p.spec.normalise ? __fdiv_rn(gate, sum) : gate) * p.spec.scaling;
  }
}

}  // namespace

Status launch_route(const RouteRowsParams& params, const Stream& stream) {
  const RouteRowsParams& p = params;
  CHECK(p.logits.cols == p.spec.num_experts && p.bias.cols == p.spec.num_experts &&
            p.spec.num_groups > 0 && p.spec.num_experts % p.spec.num_groups == 0 &&
            p.spec.top_groups <= p.spec.num_groups && p.spec.top_k <= p.spec.num_experts,
        "router of {} experts in {} groups: {} logits, {} biases", p.spec.num_experts,
        p.spec.num_groups, p.logits.cols, p.bias.cols);
  if (p.logits.rows == 0) return {};
  const int shared_bytes = (2 * (p.spec.num_experts + p.spec.num_groups) + p.spec.top_k) * 4;
  return launch_kernel("route", route,
                       {dim3(static_cast<unsigned>(p.logits.rows)), dim3(kWarp), shared_bytes},
                       stream, p);
}

}  // namespace stoker::gpu
