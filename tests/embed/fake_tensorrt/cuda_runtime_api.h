// FAKE: what engine_trt.cpp calls of CUDA, for a machine without a GPU. Nothing of it measures or computes.
#pragma once

#include <cstddef>
#include <cstdlib>

using cudaError_t = int;
using cudaStream_t = void*;
constexpr cudaError_t cudaSuccess = 0;
constexpr unsigned cudaHostAllocMapped = 2;
struct cudaDeviceProp {
  char name[256];
};

inline const char* cudaGetErrorString(cudaError_t) { return "fake error"; }
inline cudaError_t cudaGetDevice(int* device) { return *device = 0, std::getenv("FAKE_NO_GPU") ? 100 : cudaSuccess; }
inline cudaError_t cudaGetDeviceProperties(cudaDeviceProp* found, int) { return *found = {"fake GPU"}, cudaSuccess; }
inline cudaError_t cudaHostAlloc(void** memory, size_t bytes, unsigned) {
  return (*memory = std::malloc(bytes)) ? cudaSuccess : 2;
}
inline cudaError_t cudaHostGetDevicePointer(void** device, void* host, unsigned) { return *device = host, cudaSuccess; }
inline cudaError_t cudaFreeHost(void* memory) { return std::free(memory), cudaSuccess; }
inline cudaError_t cudaStreamCreate(cudaStream_t* stream) { return *stream = stream, cudaSuccess; }
inline cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }
inline cudaError_t cudaStreamDestroy(cudaStream_t) { return cudaSuccess; }
