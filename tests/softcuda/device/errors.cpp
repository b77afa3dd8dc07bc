// Errors, and the death of a device: after a fault in a kernel nearly every call on a GPU returns the error of that
// fault, until the process ends. Here a launch that is counted off brings it about, for tests of what comes after.
#include <set>

#include "device.h"

namespace softcuda {
namespace {

thread_local cudaError_t last_error = cudaSuccess;
thread_local std::string last_message;  // what the failed call to the driver has to say beyond its status

long long launches = 0;  // of the process
long long fatal = number("SOFTCUDA_FAIL_LAUNCH", -1);  // the one that kills its device, or -1
std::set<int> dead;

cudaError_t current_health() {
  Lock lock(device_mutex);
  return health(current_device());
}

}  // namespace

cudaError_t fail(cudaError_t e) {
  if (!e) return e;
  log("error %s", cudaGetErrorName(e));
  return last_error = e;
}

CUresult refuse(CUresult status, const std::string& message) {
  last_message = message;
  log("%s", message.c_str());
  return status;
}

CUresult refuse_dead(int device) {
  return refuse(CUDA_ERROR_ILLEGAL_ADDRESS, "a kernel failed, and device " + std::to_string(device) + " with it");
}

cudaError_t health(int device) { return dead.count(device) ? cudaErrorIllegalAddress : cudaSuccess; }

bool survives_launch(Lock&, int device) {
  if (health(device)) return false;
  if (launches++ != fatal) return true;
  log("device %d dies at launch %lld", device, fatal);
  dead.insert(device);
  abandon(device);
  return false;
}

// The launch that many after this call kills its device; 0 is the next one. -1 takes that back and heals all devices.
API void softcudaFailAfter(long long launches_from_now) {
  Lock lock(device_mutex);
  fatal = launches_from_now < 0 ? -1 : launches + launches_from_now;
  if (launches_from_now < 0) dead.clear();
}

#define NAMES(X)                                                                                                   \
  X(Success) X(ErrorMemoryAllocation) X(ErrorInvalidValue) X(ErrorNotSupported) X(ErrorNotReady)                   \
  X(ErrorInvalidDevice) X(ErrorInvalidPitchValue) X(ErrorInvalidResourceHandle) X(ErrorHostMemoryAlreadyRegistered) \
  X(ErrorHostMemoryNotRegistered) X(ErrorStreamCaptureUnsupported) X(ErrorIllegalState) X(ErrorIllegalAddress)     \
  X(ErrorStreamCaptureInvalidated) X(ErrorPeerAccessUnsupported) X(ErrorPeerAccessNotEnabled)

API const char* cudaGetErrorName(cudaError_t e) {
  switch (e) {
#define X(name) \
  case cuda##name: return "cuda" #name;
    NAMES(X)
#undef X
    default: return "cudaErrorUnknown";
  }
}
API const char* cudaGetErrorString(cudaError_t e) {
  switch (e) {
    case cudaErrorMemoryAllocation: return "out of memory";
    case cudaErrorIllegalAddress: return "an illegal memory access was encountered";
    default: return cudaGetErrorName(e);
  }
}
API cudaError_t cudaGetLastError() {
  const cudaError_t e = last_error, sticky = current_health();
  last_error = cudaSuccess;
  return sticky ? sticky : e;
}
API cudaError_t cudaPeekAtLastError() {
  const cudaError_t sticky = current_health();
  return sticky ? sticky : last_error;
}

API CUresult cuGetErrorName(CUresult e, const char** name) {
  switch (e) {
    case CUDA_SUCCESS: *name = "CUDA_SUCCESS"; break;
    case CUDA_ERROR_INVALID_VALUE: *name = "CUDA_ERROR_INVALID_VALUE"; break;
    case CUDA_ERROR_INVALID_PTX: *name = "CUDA_ERROR_INVALID_PTX"; break;
    case CUDA_ERROR_INVALID_IMAGE: *name = "CUDA_ERROR_INVALID_IMAGE"; break;
    case CUDA_ERROR_NOT_FOUND: *name = "CUDA_ERROR_NOT_FOUND"; break;
    case CUDA_ERROR_FILE_NOT_FOUND: *name = "CUDA_ERROR_FILE_NOT_FOUND"; break;
    case CUDA_ERROR_INVALID_HANDLE: *name = "CUDA_ERROR_INVALID_HANDLE"; break;
    case CUDA_ERROR_ILLEGAL_ADDRESS: *name = "CUDA_ERROR_ILLEGAL_ADDRESS"; break;
    case CUDA_ERROR_INVALID_CONTEXT: *name = "CUDA_ERROR_INVALID_CONTEXT"; break;
    case CUDA_ERROR_INVALID_DEVICE: *name = "CUDA_ERROR_INVALID_DEVICE"; break;
    default: *name = "CUDA_ERROR_UNKNOWN";
  }
  return CUDA_SUCCESS;
}
API CUresult cuGetErrorString(CUresult, const char** text) {
  *text = last_message.c_str();
  return CUDA_SUCCESS;
}

}  // namespace softcuda
