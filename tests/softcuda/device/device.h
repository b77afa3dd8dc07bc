// The parts of the device, as they know each other. One lock guards them all; work itself runs without it.
#pragma once
#include <cuda.h>
#include <cuda_runtime_api.h>

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "kernel.h"

#define API extern "C" __attribute__((visibility("default")))

namespace softcuda {

using Lock = std::unique_lock<std::mutex>;
extern std::mutex device_mutex;

// --- settings (device.cpp)
bool flag(const char* variable);
long long number(const char* variable, long long otherwise);
int device_count();
bool device_exists(int device);
size_t memory_limit();           // of each device
int compute_capability();
void log(const char* format, ...) __attribute__((format(printf, 1, 2)));

// --- contexts.cpp
int current_device();            // of the calling thread

// --- errors.cpp
cudaError_t fail(cudaError_t);   // passes success on
cudaError_t health(int device);  // success, or the error that the device died of
CUresult refuse(CUresult, const std::string& message);  // the message is what cuGetErrorString then says
CUresult refuse_dead(int device);
bool survives_launch(Lock&, int device);  // counts a launch, and lets the device die where that was asked for

// --- memory.cpp
struct Region {                  // memory between two guard pages, filled with the poison
  char* map = nullptr;
  size_t map_bytes = 0;
  char* start = nullptr;
  size_t bytes = 0;
  int device = 0;                // that was current when it was allocated
  bool managed = false;          // every device may use it
};
constexpr int poison = 0xA5;
Region reserve(size_t bytes);    // start is nullptr where the system has no memory
void release(const Region&);     // ends the process if something was written beside it
enum class Memory { pageable, pinned, device };
Memory memory_kind(const void*);
const Region* device_allocation(const void*);       // the one that the address is in, or nullptr
bool inside_allocation(const void*, size_t bytes);
void check_allocations();
std::string describe(uint64_t address);

// --- streams.cpp
using Clock = std::chrono::steady_clock;
struct Stream;
struct Operation {               // work, or waiting for another stream
  uint64_t number;
  std::function<void()> work;
  std::shared_ptr<Stream> after;
  uint64_t after_number;
  bool callback = false;         // is called on a dead device, too
};
struct Stream {
  int device;
  bool blocking;                 // ordered with the legacy default stream of its device
  std::deque<Operation> queue;
  uint64_t queued = 0, done = 0; // numbers of the last operation
  bool running = false;
  bool capturing = false, broken = false;  // a capture that something forbidden has broken
  cudaStreamCaptureMode mode = cudaStreamCaptureModeGlobal;
  std::thread::id capturer;
  std::vector<Operation> captured;
};
bool is_default(const Stream&);
std::shared_ptr<Stream> find_stream(void* handle);  // empty for a handle that was destroyed
cudaError_t usable_stream(void* handle, std::shared_ptr<Stream>&);  // fails also where its device is dead
void enqueue(Lock&, const std::shared_ptr<Stream>&, Operation);
void enqueue(Lock&, const std::shared_ptr<Stream>&, std::function<void()>);
void run_until(Lock&, const std::shared_ptr<Stream>&, uint64_t number);
void drain(Lock&, const std::shared_ptr<Stream>&);
void drain_device(Lock&, int device);
cudaError_t answer(Lock&, const std::shared_ptr<Stream>&, uint64_t number);  // whether it is done
void abandon(int device);        // drops the work that is queued
void when_idle(Lock&, std::function<void()>);       // at once if no work is queued
std::vector<std::shared_ptr<Stream>> capturing_streams();

// --- graphs.cpp
cudaError_t may_allocate();      // unless a capture forbids it to the calling thread, which breaks the capture
cudaError_t may_wait_for_device(int device);  // likewise

// --- modules.cpp
struct Function {
  const Kernel* kernel;
  int device;                    // that its module was loaded for
};
const Function* find_function(CUfunction);  // nullptr for one whose module was unloaded

// --- launch.cpp
void launch(const Kernel&, const char* params, const unsigned grid[3], const unsigned block[3], unsigned dynamic_bytes);

// --- stats.cpp
struct KernelProfile {
  unsigned long long threads, instructions, requests;
  unsigned long long bytes[2], sectors[2], unique_sectors[2];  // of loads, of stores
};
struct Counters {
  unsigned long long h2d = 0, d2h = 0, d2d = 0;  // bytes copied
  unsigned long long mallocs = 0, pinned = 0, used = 0, peak = 0;
  unsigned long long pageable_async = 0, syncs = 0;
  std::map<std::string, unsigned long long> launches;
};
struct Stats {
  Counters total;
  std::map<int, Counters> devices;
  std::map<std::string, KernelProfile> profiles;
};
extern Stats stats;
void count(int device, unsigned long long Counters::*, unsigned long long n = 1);
void count_launch(int device, const char* kernel);
void count_memory(int device, long long bytes);  // allocated, or freed where negative

}  // namespace softcuda
