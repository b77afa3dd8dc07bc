// Modules: PTX in, kernels out, by way of ptxcc.py and the C++ compiler. Results are kept by content. A module and its
// functions belong to the device that was current when it was loaded.
#include <dlfcn.h>
#include <fcntl.h>
#include <spawn.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <set>

#include "device.h"

extern char** environ;

namespace softcuda {
namespace {

struct Module {
  void* library;
  int device;
  std::map<std::string, Function> functions;
};

std::set<const void*> functions;  // of the modules that are loaded

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

const Function* find_function(CUfunction handle) {
  auto* function = reinterpret_cast<const Function*>(handle);
  return functions.count(function) ? function : nullptr;
}

API CUresult cuModuleLoadData(CUmodule* module, const void* image) {
  const int device = current_device();
  {
    Lock lock(device_mutex);
    if (health(device)) return refuse_dead(device);
  }
  const std::string ptx(static_cast<const char*>(image));
  if (ptx.find(".version") == std::string::npos)
    return refuse(CUDA_ERROR_INVALID_IMAGE, "softcuda runs PTX, and this is not PTX: set CUPY_COMPILE_WITH_PTX=1");
  std::string path;
  if (CUresult status = compile(ptx, path)) return status;
  void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (!library) return refuse(CUDA_ERROR_INVALID_IMAGE, std::string("softcuda: ") + dlerror());
  *module = reinterpret_cast<CUmodule>(new Module{library, device, {}});
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
API CUresult cuModuleUnload(CUmodule handle) {
  Lock lock(device_mutex);
  auto* module = reinterpret_cast<Module*>(handle);
  for (auto& f : module->functions) functions.erase(&f.second);
  delete module;
  return CUDA_SUCCESS;
}
API CUresult cuModuleGetFunction(CUfunction* function, CUmodule handle, const char* name) {
  Lock lock(device_mutex);
  auto* module = reinterpret_cast<Module*>(handle);
  void* kernel = dlsym(module->library, (std::string(name) + "__kernel").c_str());
  if (!kernel) return refuse(CUDA_ERROR_NOT_FOUND, std::string("the module has no kernel named ") + name);
  Function& made = module->functions[name];
  made = {static_cast<const Kernel*>(kernel), module->device};
  functions.insert(&made);
  *function = reinterpret_cast<CUfunction>(&made);
  return CUDA_SUCCESS;
}

}  // namespace softcuda
