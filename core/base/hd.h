// STOKER_HD marks functions that both the host and CUDA compile: bit layouts and arithmetic are
// written once.
#pragma once

#ifdef __CUDACC__
#define STOKER_HD __host__ __device__
#else
#define STOKER_HD
#endif
