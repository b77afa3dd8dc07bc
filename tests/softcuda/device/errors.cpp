// Errors: their names, and the last one of each thread.
#include "device.h"

namespace softcuda {
namespace {

thread_local cudaError_t last_error = cudaSuccess;
thread_local std::string last_message;  // what the failed call to the driver has to say beyond its status

}  // namespace

cudaError_t fail(cudaError_t e) {
  log("error %s", cudaGetErrorName(e));
  return last_error = e;
}

CUresult refuse(CUresult status, const std::string& message) {
  last_message = message;
  log("%s", message.c_str());
  return status;
}

#define NAMES(X)                                                                                                   \
  X(Success) X(ErrorMemoryAllocation) X(ErrorInvalidValue) X(ErrorNotSupported) X(ErrorNotReady)                   \
  X(ErrorInvalidDevice) X(ErrorInvalidPitchValue) X(ErrorInvalidResourceHandle) X(ErrorHostMemoryAlreadyRegistered) \
  X(ErrorHostMemoryNotRegistered) X(ErrorStreamCaptureUnsupported) X(ErrorIllegalState)                            \
  X(ErrorPeerAccessUnsupported) X(ErrorPeerAccessNotEnabled)

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
  return e == cudaErrorMemoryAllocation ? "out of memory" : cudaGetErrorName(e);
}
API cudaError_t cudaGetLastError() {
  const cudaError_t e = last_error;
  last_error = cudaSuccess;
  return e;
}
API cudaError_t cudaPeekAtLastError() { return last_error; }

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
