// Launches as CUDA's driver takes them: checked, counted, and queued with a copy of their parameters.
#include <cstdio>
#include <cstring>

#include "device.h"

namespace softcuda {

API CUresult cuLaunchKernel(CUfunction function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by,
                            unsigned bz, unsigned dynamic_bytes, CUstream handle, void** arguments, void**) {
  Lock lock(device_mutex);
  auto* kernel = reinterpret_cast<const Kernel*>(function);
  auto stream = find_stream(handle);
  if (!stream) return refuse(CUDA_ERROR_INVALID_HANDLE, "a stream that was destroyed");
  char text[300];
  snprintf(text, sizeof text, "%s, grid (%u, %u, %u), block (%u, %u, %u), %u bytes of dynamic shared memory",
           kernel->name, gx, gy, gz, bx, by, bz, dynamic_bytes);
  log("launch %s", text);
  const unsigned long long threads = 1ull * bx * by * bz;
  const bool grid_fits = gx && gy && gz && gx <= 2147483647u && gy <= 65535 && gz <= 65535;
  const bool block_fits = threads && bx <= 1024 && by <= 1024 && bz <= 64 && threads <= 1024;
  if (!grid_fits || !block_fits || kernel->shared_bytes + 1ull * dynamic_bytes > 49152)
    return refuse(CUDA_ERROR_INVALID_VALUE, std::string("a launch beyond the device's limits: ") + text);
  if (kernel->max_threads && threads > kernel->max_threads)
    return refuse(CUDA_ERROR_INVALID_VALUE, std::string("a launch beyond the kernel's __launch_bounds__: ") + text);
  const unsigned last = kernel->param_count - 1;
  std::vector<char> params(kernel->param_count ? kernel->param_offsets[last] + kernel->param_sizes[last] : 0);
  for (unsigned i = 0; i < kernel->param_count; i++)
    memcpy(params.data() + kernel->param_offsets[i], arguments[i], kernel->param_sizes[i]);
  stats.launches[kernel->name]++;
  enqueue(lock, stream, [=] {
    const unsigned grid[3] = {gx, gy, gz}, block[3] = {bx, by, bz};
    launch(*kernel, params.data(), grid, block, dynamic_bytes);
  });
  return CUDA_SUCCESS;
}

API CUresult cuFuncGetAttribute(int* value, CUfunction_attribute attribute, CUfunction function) {
  auto* kernel = reinterpret_cast<const Kernel*>(function);
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
