// Which device a thread works with. A device has one context, its primary one, current where the device is. Access to
// the memory of a peer is refused, as between GPUs that lack a path: what works here works on such GPUs, too.
#include "device.h"

namespace softcuda {
namespace {

thread_local int current = 0;
thread_local std::vector<int> pushed;  // what was current below it

CUcontext context(int device) {
  static std::vector<char> contexts(device_count());
  return reinterpret_cast<CUcontext>(&contexts[device]);
}
int device_of(CUcontext c) {
  for (int device = 0; device < device_count(); device++)
    if (context(device) == c) return device;
  return -1;
}

cudaError_t check_peer(int device) {
  return device_exists(device) && device != current ? cudaSuccess : fail(cudaErrorInvalidDevice);
}

}  // namespace

int current_device() { return current; }

API cudaError_t cudaGetDevice(int* device) {
  *device = current;
  return cudaSuccess;
}
API cudaError_t cudaSetDevice(int device) {
  if (!device_exists(device)) return fail(cudaErrorInvalidDevice);
  current = device;
  return cudaSuccess;
}

API cudaError_t cudaDeviceCanAccessPeer(int* can, int device, int peer) {
  if (!device_exists(device) || !device_exists(peer)) return fail(cudaErrorInvalidDevice);
  *can = 0;
  return cudaSuccess;
}
API cudaError_t cudaDeviceEnablePeerAccess(int peer, unsigned) {
  const cudaError_t e = check_peer(peer);
  return e ? e : fail(cudaErrorPeerAccessUnsupported);
}
API cudaError_t cudaDeviceDisablePeerAccess(int peer) {
  const cudaError_t e = check_peer(peer);
  return e ? e : fail(cudaErrorPeerAccessNotEnabled);
}

API CUresult cuCtxGetCurrent(CUcontext* c) {
  *c = context(current);
  return CUDA_SUCCESS;
}
// A thread always has a context: taking it away (nullptr) leaves the one it had.
API CUresult cuCtxSetCurrent(CUcontext c) {
  const int device = c ? device_of(c) : current;
  if (device < 0) return CUDA_ERROR_INVALID_CONTEXT;
  current = device;
  return CUDA_SUCCESS;
}
API CUresult cuCtxPushCurrent(CUcontext c) {
  const int device = device_of(c);
  if (device < 0) return CUDA_ERROR_INVALID_CONTEXT;
  pushed.push_back(current);
  current = device;
  return CUDA_SUCCESS;
}
API CUresult cuCtxPopCurrent(CUcontext* c) {
  if (pushed.empty()) return CUDA_ERROR_INVALID_CONTEXT;
  if (c) *c = context(current);
  current = pushed.back();
  pushed.pop_back();
  return CUDA_SUCCESS;
}
API CUresult cuCtxGetDevice(CUdevice* device) {
  *device = current;
  return CUDA_SUCCESS;
}
API CUresult cuCtxSynchronize() { return static_cast<CUresult>(cudaDeviceSynchronize()); }
API CUresult cuDevicePrimaryCtxRetain(CUcontext* c, CUdevice device) {
  if (!device_exists(device)) return CUDA_ERROR_INVALID_DEVICE;
  *c = context(device);
  return CUDA_SUCCESS;
}
API CUresult cuDevicePrimaryCtxRelease(CUdevice device) {
  return device_exists(device) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_DEVICE;
}
API CUresult cuStreamGetCtx(CUstream s, CUcontext* c) {
  Lock lock(device_mutex);
  auto stream = find_stream(s);
  if (!stream) return CUDA_ERROR_INVALID_HANDLE;
  *c = context(stream->device);
  return CUDA_SUCCESS;
}

}  // namespace softcuda
