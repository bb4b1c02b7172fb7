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
  for (int e = lane; e < num_experts; e += kWarp) {
    gates[e] = __fdiv_rn(1.0f, __fadd_rn(1.0f, quant::exp_defined(-load(p.logits, row, e))));
    scores[e] = gates[e] + load(p.bias, 0, e);
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
    for (int i = 0; i < p.spec.top_groups; ++i) {
      const int best = warp_argmax(groups, num_groups);
      __syncwarp();
      if (lane == 0) {
        kept[best] = 1.0f;
        groups[best] = -INFINITY;
      }
      __syncwarp();
    }
    for (int e = lane; e < num_experts; e += kWarp) {
      if (kept[e / group_size] == 0.0f) scores[e] = -INFINITY;
    }
    __syncwarp();
    // 2. The best experts of what is left.
    for (int i = 0; i < top_k; ++i) {
      const int best = warp_argmax(scores, num_experts);
      __syncwarp();
      if (lane == 0) {
        experts[i] = best;
        scores[best] = -INFINITY;
      }
      __syncwarp();
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
