// What the devices say of themselves: their settings and their properties.
#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "device.h"

namespace softcuda {
namespace {

constexpr int version = 12090;
constexpr int multiprocessors = 4;

// With one device its name has no number, as programs and their records know it.
std::string name_of(int device) {
  return "softcuda (CPU)" + (device_count() > 1 ? " #" + std::to_string(device) : std::string());
}

// Without a zero in it: CuPy reads it as text.
void uuid_of(int device, char bytes[16]) {
  char text[32];
  snprintf(text, sizeof text, "softcuda-gpu-%03d", device);
  memcpy(bytes, text, 16);
}

std::string pci_bus_id(int device) {
  char id[32];
  snprintf(id, sizeof id, "0000:%02x:00.0", device);
  return id;
}

cudaError_t properties(cudaDeviceProp* p, int device) {
  if (!device_exists(device)) return fail(cudaErrorInvalidDevice);
  memset(p, 0, sizeof *p);
  strcpy(p->name, name_of(device).c_str());
  uuid_of(device, p->uuid.bytes);
  p->pciBusID = device;
  p->totalGlobalMem = memory_limit();
  p->major = compute_capability() / 10;
  p->minor = compute_capability() % 10;
  p->multiProcessorCount = multiprocessors;
  p->warpSize = 32;
  p->maxThreadsPerBlock = 1024;
  p->sharedMemPerBlock = 49152;
  p->maxGridSize[0] = 2147483647;
  p->maxGridSize[1] = p->maxGridSize[2] = 65535;
  p->maxThreadsDim[0] = p->maxThreadsDim[1] = 1024;
  p->maxThreadsDim[2] = 64;
  p->memoryBusWidth = 64;
  p->memoryClockRate = p->clockRate = 1000000;
  p->l2CacheSize = 1 << 20;
  p->asyncEngineCount = 2;
  return cudaSuccess;
}

}  // namespace

bool flag(const char* variable) {
  const char* v = getenv(variable);
  return v && *v && *v != '0';
}
long long number(const char* variable, long long otherwise) {
  const char* v = getenv(variable);
  return v && *v ? strtoll(v, nullptr, 0) : otherwise;
}
int device_count() {
  // A PCI bus has a number of one byte, and each device its own.
  static const int count = static_cast<int>(std::clamp(number("SOFTCUDA_DEVICES", 1), 1ll, 256ll));
  return count;
}
bool device_exists(int device) { return device >= 0 && device < device_count(); }
size_t memory_limit() {
  static const size_t bytes = static_cast<size_t>(number("SOFTCUDA_MEM", 4ll << 30));
  return bytes;
}
int compute_capability() {
  static const int cc = static_cast<int>(number("SOFTCUDA_CC", 86));
  return cc;
}
void log(const char* format, ...) {
  static const bool wanted = flag("SOFTCUDA_LOG");
  if (!wanted) return;
  va_list arguments;
  va_start(arguments, format);
  fputs("[softcuda] ", stderr);
  vfprintf(stderr, format, arguments);
  fputc('\n', stderr);
  va_end(arguments);
}

API cudaError_t cudaDriverGetVersion(int* v) {
  *v = version;
  return cudaSuccess;
}
API cudaError_t cudaRuntimeGetVersion(int* v) {
  *v = version;
  return cudaSuccess;
}
API cudaError_t cudaGetDeviceCount(int* count) {
  *count = device_count();
  return cudaSuccess;
}
API cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  if (!device_exists(device)) return fail(cudaErrorInvalidDevice);
  switch (attribute) {
    case cudaDevAttrComputeCapabilityMajor: *value = compute_capability() / 10; break;
    case cudaDevAttrComputeCapabilityMinor: *value = compute_capability() % 10; break;
    case cudaDevAttrMultiProcessorCount: *value = multiprocessors; break;
    case cudaDevAttrMaxThreadsPerBlock: *value = 1024; break;
    case cudaDevAttrWarpSize: *value = 32; break;
    case cudaDevAttrMaxSharedMemoryPerBlock: *value = 49152; break;
    case cudaDevAttrMaxGridDimX: *value = 2147483647; break;
    case cudaDevAttrPciBusId: *value = device; break;
    default: *value = 0;
  }
  return cudaSuccess;
}
API cudaError_t cudaDeviceGetPCIBusId(char* id, int size, int device) {
  if (!device_exists(device)) return fail(cudaErrorInvalidDevice);
  snprintf(id, size, "%s", pci_bus_id(device).c_str());
  return cudaSuccess;
}
API cudaError_t cudaDeviceGetByPCIBusId(int* device, const char* id) {
  for (int i = 0; i < device_count(); i++) {
    if (pci_bus_id(i) != id) continue;
    *device = i;
    return cudaSuccess;
  }
  return fail(cudaErrorInvalidDevice);
}
// CUDA 12 renames the function with a macro; CuPy links either name.
#undef cudaGetDeviceProperties
API cudaError_t cudaGetDeviceProperties_v2(cudaDeviceProp* p, int device) { return properties(p, device); }
API cudaError_t cudaGetDeviceProperties(cudaDeviceProp* p, int device) { return properties(p, device); }
API cudaError_t cudaDeviceGetLimit(size_t* value, cudaLimit) {
  *value = 0;
  return cudaSuccess;
}
API cudaError_t cudaDeviceSetLimit(cudaLimit, size_t) { return cudaSuccess; }
API cudaError_t cudaProfilerStart() { return cudaSuccess; }
API cudaError_t cudaProfilerStop() { return cudaSuccess; }

API CUresult cuInit(unsigned) { return CUDA_SUCCESS; }
API CUresult cuDriverGetVersion(int* v) {
  *v = version;
  return CUDA_SUCCESS;
}
// NVRTC asks for a private table of the driver and goes on without it.
API CUresult cuGetExportTable(const void** table, const CUuuid*) {
  *table = nullptr;
  return CUDA_ERROR_NOT_FOUND;
}
API CUresult cuDeviceGetCount(int* count) {
  *count = device_count();
  return CUDA_SUCCESS;
}
API CUresult cuDeviceGet(CUdevice* device, int ordinal) {
  if (!device_exists(ordinal)) return CUDA_ERROR_INVALID_DEVICE;
  *device = ordinal;
  return CUDA_SUCCESS;
}
API CUresult cuDeviceGetName(char* name, int size, CUdevice device) {
  if (!device_exists(device)) return CUDA_ERROR_INVALID_DEVICE;
  snprintf(name, size, "%s", name_of(device).c_str());
  return CUDA_SUCCESS;
}
API CUresult cuDeviceGetUuid(CUuuid* uuid, CUdevice device) {
  if (!device_exists(device)) return CUDA_ERROR_INVALID_DEVICE;
  uuid_of(device, uuid->bytes);
  return CUDA_SUCCESS;
}
API CUresult cuDeviceTotalMem(size_t* bytes, CUdevice device) {
  if (!device_exists(device)) return CUDA_ERROR_INVALID_DEVICE;
  *bytes = memory_limit();
  return CUDA_SUCCESS;
}

}  // namespace softcuda
