// Modules: PTX in, kernels out, by way of ptxcc.py and the C++ compiler. Results are kept by content.
#include <dlfcn.h>
#include <fcntl.h>
#include <spawn.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "device.h"

extern char** environ;

namespace softcuda {
namespace {

struct Module {
  void* library;
};

thread_local std::string last_message;  // what the failed call of this thread has to say beyond its status

CUresult refuse(CUresult status, const std::string& message) {
  last_message = message;
  log("%s", message.c_str());
  return status;
}

// The folder of the finished build: this library is in its folder `lib`.
std::string build_folder() {
  Dl_info info;
  dladdr(reinterpret_cast<void*>(&build_folder), &info);
  const std::string path = info.dli_fname;
  return path.substr(0, path.rfind('/')) + "/..";
}

// Runs a command and returns its exit status; `output` is what it wrote to standard error.
int run(const std::vector<std::string>& command, std::string& output) {
  int ends[2];
  if (pipe2(ends, O_CLOEXEC)) return -1;
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_adddup2(&actions, ends[1], STDERR_FILENO);
  std::vector<char*> arguments;
  for (auto& a : command) arguments.push_back(const_cast<char*>(a.c_str()));
  arguments.push_back(nullptr);
  pid_t child;
  const int error = posix_spawnp(&child, arguments[0], &actions, nullptr, arguments.data(), environ);
  posix_spawn_file_actions_destroy(&actions);
  close(ends[1]);
  char buffer[4096];
  ssize_t n;
  while (!error && (n = read(ends[0], buffer, sizeof buffer)) > 0) output.append(buffer, n);
  close(ends[0]);
  if (error) {
    output = std::string("cannot run ") + arguments[0] + ": " + strerror(error);
    return -1;
  }
  int status;
  while (waitpid(child, &status, 0) < 0 && errno == EINTR) continue;
  return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

CUresult compile(const std::string& ptx, std::string& library) {
  const std::string folder = build_folder() + "/kernels";
  mkdir(folder.c_str(), 0777);
  char key[64];
  snprintf(key, sizeof key, "%016zx-%zu", std::hash<std::string>{}(ptx), ptx.size());
  library = folder + "/" + key + ".so";
  if (!access(library.c_str(), R_OK)) return CUDA_SUCCESS;

  std::string source = folder + "/XXXXXX.ptx";
  const int file = mkstemps(&source[0], 4);
  if (file < 0) return refuse(CUDA_ERROR_OPERATING_SYSTEM, "softcuda cannot write to " + folder);
  const bool written = write(file, ptx.data(), ptx.size()) == static_cast<ssize_t>(ptx.size());
  close(file);
  const char* python = getenv("SOFTCUDA_PYTHON");
  std::string output;
  const int status = !written ? -1
                              : run({python ? python : "python3", "-I", "-S", build_folder() + "/softcuda/ptxcc.py",
                                     source, library}, output);
  unlink(source.c_str());
  if (!status) return CUDA_SUCCESS;
  return refuse(CUDA_ERROR_INVALID_PTX, output.empty() ? "softcuda could not compile the PTX" : output);
}

}  // namespace

API CUresult cuGetErrorName(CUresult e, const char** name) {
  switch (e) {
    case CUDA_SUCCESS: *name = "CUDA_SUCCESS"; break;
    case CUDA_ERROR_INVALID_VALUE: *name = "CUDA_ERROR_INVALID_VALUE"; break;
    case CUDA_ERROR_INVALID_PTX: *name = "CUDA_ERROR_INVALID_PTX"; break;
    case CUDA_ERROR_INVALID_IMAGE: *name = "CUDA_ERROR_INVALID_IMAGE"; break;
    case CUDA_ERROR_NOT_FOUND: *name = "CUDA_ERROR_NOT_FOUND"; break;
    case CUDA_ERROR_FILE_NOT_FOUND: *name = "CUDA_ERROR_FILE_NOT_FOUND"; break;
    case CUDA_ERROR_INVALID_HANDLE: *name = "CUDA_ERROR_INVALID_HANDLE"; break;
    default: *name = "CUDA_ERROR_UNKNOWN";
  }
  return CUDA_SUCCESS;
}
API CUresult cuGetErrorString(CUresult, const char** text) {
  *text = last_message.c_str();
  return CUDA_SUCCESS;
}

API CUresult cuModuleLoadData(CUmodule* module, const void* image) {
  const std::string ptx(static_cast<const char*>(image));
  if (ptx.find(".version") == std::string::npos)
    return refuse(CUDA_ERROR_INVALID_IMAGE, "softcuda runs PTX, and this is not PTX: set CUPY_COMPILE_WITH_PTX=1");
  std::string path;
  if (CUresult status = compile(ptx, path)) return status;
  void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (!library) return refuse(CUDA_ERROR_INVALID_IMAGE, std::string("softcuda: ") + dlerror());
  *module = reinterpret_cast<CUmodule>(new Module{library});
  return CUDA_SUCCESS;
}
API CUresult cuModuleLoad(CUmodule* module, const char* path) {
  FILE* file = fopen(path, "r");
  if (!file) return refuse(CUDA_ERROR_FILE_NOT_FOUND, std::string("no file ") + path);
  std::string ptx;
  char buffer[65536];
  size_t n;
  while ((n = fread(buffer, 1, sizeof buffer, file)) > 0) ptx.append(buffer, n);
  fclose(file);
  return cuModuleLoadData(module, ptx.c_str());
}
// The library stays loaded: work that is still queued may run its kernels.
API CUresult cuModuleUnload(CUmodule module) {
  delete reinterpret_cast<Module*>(module);
  return CUDA_SUCCESS;
}
API CUresult cuModuleGetFunction(CUfunction* function, CUmodule module, const char* name) {
  void* kernel = dlsym(reinterpret_cast<Module*>(module)->library, (std::string(name) + "__kernel").c_str());
  if (!kernel) return refuse(CUDA_ERROR_NOT_FOUND, std::string("the module has no kernel named ") + name);
  *function = reinterpret_cast<CUfunction>(kernel);
  return CUDA_SUCCESS;
}

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
