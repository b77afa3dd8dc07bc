// Launches as CUDA's driver takes them: checked, counted, and queued with a copy of their parameters.
#include <cstdio>
#include <cstring>

#include "device.h"

namespace softcuda {
namespace {

struct Shape {
  unsigned grid[3], block[3], dynamic_bytes;
};

std::string text_of(const Kernel& kernel, const Shape& s) {
  char text[300];
  snprintf(text, sizeof text, "%s, grid (%u, %u, %u), block (%u, %u, %u), %u bytes of dynamic shared memory",
           kernel.name, s.grid[0], s.grid[1], s.grid[2], s.block[0], s.block[1], s.block[2], s.dynamic_bytes);
  return text;
}

CUresult check_shape(const Kernel& kernel, const Shape& s, const std::string& text) {
  const auto &g = s.grid, &b = s.block;
  const unsigned long long threads = 1ull * b[0] * b[1] * b[2];
  const bool grid_fits = g[0] && g[1] && g[2] && g[0] <= 2147483647u && g[1] <= 65535 && g[2] <= 65535;
  const bool block_fits = threads && b[0] <= 1024 && b[1] <= 1024 && b[2] <= 64 && threads <= 1024;
  if (!grid_fits || !block_fits || kernel.shared_bytes + 1ull * s.dynamic_bytes > 49152)
    return refuse(CUDA_ERROR_INVALID_VALUE, "a launch beyond the device's limits: " + text);
  if (kernel.max_threads && threads > kernel.max_threads)
    return refuse(CUDA_ERROR_INVALID_VALUE, "a launch beyond the kernel's __launch_bounds__: " + text);
  return CUDA_SUCCESS;
}

// A kernel is launched on a stream of the current device, which is also the one that its module was loaded for.
CUresult check_device(const Function& function, const Stream& stream) {
  const int device = current_device();
  const bool of_stream = stream.device != device;
  if (!of_stream && function.device == device) return CUDA_SUCCESS;
  return refuse(CUDA_ERROR_INVALID_HANDLE,
                std::string("kernel ") + function.kernel->name + " launched with device " + std::to_string(device) +
                    " current, " + (of_stream ? "on a stream" : "from a module") + " of device " +
                    std::to_string(of_stream ? stream.device : function.device));
}

// Memory of another device that a parameter points to, itself or in a member (CuPy passes arrays as structures). A GPU
// fails when the kernel touches it; here the launch is refused, though the kernel may never do.
CUresult check_reach(const Kernel& kernel, const std::vector<char>& params, int device) {
  for (unsigned i = 0; device_count() > 1 && i < kernel.param_count; i++) {
    for (unsigned at = 0; at + sizeof(void*) <= kernel.param_sizes[i]; at += sizeof(void*)) {
      void* p;
      memcpy(&p, params.data() + kernel.param_offsets[i] + at, sizeof p);
      const Region* region = device_allocation(p);
      if (!region || region->managed || region->device == device) continue;
      return refuse(CUDA_ERROR_ILLEGAL_ADDRESS,
                    std::string("kernel ") + kernel.name + " on device " + std::to_string(device) +
                        " is given memory of device " + std::to_string(region->device) + " in its parameter " +
                        std::to_string(i) + ", and devices have no access to each other's memory");
    }
  }
  return CUDA_SUCCESS;
}

}  // namespace

API CUresult cuLaunchKernel(CUfunction handle, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by,
                            unsigned bz, unsigned dynamic_bytes, CUstream stream_handle, void** arguments, void**) {
  Lock lock(device_mutex);
  const Function* function = find_function(handle);
  if (!function) return refuse(CUDA_ERROR_INVALID_HANDLE, "a function whose module was unloaded");
  auto stream = find_stream(stream_handle);
  if (!stream) return refuse(CUDA_ERROR_INVALID_HANDLE, "a stream that was destroyed");
  const Kernel* kernel = function->kernel;
  const Shape shape = {{gx, gy, gz}, {bx, by, bz}, dynamic_bytes};
  const std::string text = text_of(*kernel, shape);
  log("launch %s", text.c_str());
  if (CUresult status = check_device(*function, *stream)) return status;
  if (CUresult status = check_shape(*kernel, shape, text)) return status;
  const unsigned last = kernel->param_count - 1;
  std::vector<char> params(kernel->param_count ? kernel->param_offsets[last] + kernel->param_sizes[last] : 0);
  for (unsigned i = 0; i < kernel->param_count; i++)
    memcpy(params.data() + kernel->param_offsets[i], arguments[i], kernel->param_sizes[i]);
  if (CUresult status = check_reach(*kernel, params, stream->device)) return status;
  if (!survives_launch(lock, stream->device)) return refuse_dead(stream->device);
  count_launch(stream->device, kernel->name);
  enqueue(lock, stream, [=] { launch(*kernel, params.data(), shape.grid, shape.block, shape.dynamic_bytes); });
  return CUDA_SUCCESS;
}

API CUresult cuFuncGetAttribute(int* value, CUfunction_attribute attribute, CUfunction handle) {
  Lock lock(device_mutex);
  const Function* function = find_function(handle);
  if (!function) return CUDA_ERROR_INVALID_HANDLE;
  const Kernel* kernel = function->kernel;
  switch (attribute) {
    case CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK: *value = kernel->max_threads ? kernel->max_threads : 1024; break;
    case CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES: *value = kernel->shared_bytes; break;
    default: *value = 0;
  }
  return CUDA_SUCCESS;
}
API CUresult cuFuncSetAttribute(CUfunction, CUfunction_attribute, int) { return CUDA_SUCCESS; }
API CUresult cuOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, CUfunction, int, size_t) {
  *blocks = 4;
  return CUDA_SUCCESS;
}
API CUresult cuOccupancyMaxPotentialBlockSize(int* grid, int* block, CUfunction, CUoccupancyB2DSize, size_t, int) {
  *grid = 4;
  *block = 256;
  return CUDA_SUCCESS;
}

}  // namespace softcuda
