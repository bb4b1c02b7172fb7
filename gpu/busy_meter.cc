#include "gpu/busy_meter.h"

#include <cuda_runtime_api.h>

#include "gpu/error.h"

namespace stoker::gpu {

Result<BusyMeter> BusyMeter::create() {
  ASSIGN_OR_RETURN(StreamEvent begin, StreamEvent::create(StreamEvent::Timing::kOn));
  ASSIGN_OR_RETURN(StreamEvent end, StreamEvent::create(StreamEvent::Timing::kOn));
  return BusyMeter(std::move(begin), std::move(end));
}

Status BusyMeter::before_work(const Stream& stream) {
  marked_ = false;
  if (working_) return {};
  working_ = true;
  return begin_.record(stream);
}

Status BusyMeter::mark_end(const Stream& stream) {
  marked_ = true;
  return end_.record(stream);
}

Status BusyMeter::stands_still() {
  if (!working_ || !marked_) return {};
  working_ = false;
  float ms = 0.0F;
  RETURN_IF_ERROR(cuda_status(cudaEventElapsedTime(&ms, static_cast<cudaEvent_t>(begin_.handle()),
                                                   static_cast<cudaEvent_t>(end_.handle())),
                              "reading how long a stream was busy"));
  busy_us_ += 1e3 * static_cast<double>(ms);
  return {};
}

}  // namespace stoker::gpu
