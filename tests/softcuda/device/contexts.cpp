// Which device and context a thread works with: there is one of each.
#include "device.h"

namespace softcuda {
namespace {

CUcontext context() {
  static char the_only_context;
  return reinterpret_cast<CUcontext>(&the_only_context);
}

}  // namespace

API cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
API cudaError_t cudaSetDevice(int device) { return device ? fail(cudaErrorInvalidDevice) : cudaSuccess; }

API cudaError_t cudaDeviceCanAccessPeer(int* can, int, int) {
  *can = 0;
  return cudaSuccess;
}

API CUresult cuCtxGetCurrent(CUcontext* c) {
  *c = context();
  return CUDA_SUCCESS;
}
API CUresult cuCtxSetCurrent(CUcontext) { return CUDA_SUCCESS; }
API CUresult cuCtxGetDevice(CUdevice* device) {
  *device = 0;
  return CUDA_SUCCESS;
}
API CUresult cuDevicePrimaryCtxRelease(CUdevice) { return CUDA_SUCCESS; }
API CUresult cuStreamGetCtx(CUstream, CUcontext* c) {
  *c = context();
  return CUDA_SUCCESS;
}

}  // namespace softcuda
