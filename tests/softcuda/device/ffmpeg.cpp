// What FFmpeg asks the driver for when it is given frames in device memory. The names that it looks up and never calls
// here have bodies that fail (build.py). A device has no contexts but its primary one: a new one is that, pushed.
#include "device.h"

namespace softcuda {

API CUresult cuDeviceGetAttribute(int* value, CUdevice_attribute attribute, CUdevice device) {
  if (!device_exists(device)) return CUDA_ERROR_INVALID_DEVICE;
  if (attribute != CU_DEVICE_ATTRIBUTE_TEXTURE_ALIGNMENT) return CUDA_ERROR_INVALID_VALUE;
  *value = 512;
  return CUDA_SUCCESS;
}
API CUresult cuDeviceComputeCapability(int* major, int* minor, CUdevice device) {
  if (!device_exists(device)) return CUDA_ERROR_INVALID_DEVICE;
  *major = compute_capability() / 10;
  *minor = compute_capability() % 10;
  return CUDA_SUCCESS;
}
// Made by the CUDA runtime, with its own flags: FFmpeg, which wants others, refuses to share it as the primary one.
API CUresult cuDevicePrimaryCtxGetState(CUdevice device, unsigned* flags, int* active) {
  if (!device_exists(device)) return CUDA_ERROR_INVALID_DEVICE;
  *flags = CU_CTX_SCHED_AUTO;
  *active = 1;
  return CUDA_SUCCESS;
}
API CUresult cuDevicePrimaryCtxSetFlags(CUdevice, unsigned) { return CUDA_ERROR_PRIMARY_CONTEXT_ACTIVE; }
API CUresult cuCtxCreate_v2(CUcontext* c, unsigned, CUdevice device) {
  const CUresult e = cuDevicePrimaryCtxRetain(c, device);
  return e ? e : cuCtxPushCurrent(*c);
}
API CUresult cuCtxDestroy_v2(CUcontext) { return CUDA_SUCCESS; }

// For the encoder (nvenc/): the device whose memory so many bytes from an address on are; -1 where they are not.
API int softcudaDeviceOf(const void* address, size_t bytes) {
  Lock lock(device_mutex);
  return inside_allocation(address, bytes) ? device_allocation(address)->device : -1;
}

}  // namespace softcuda
