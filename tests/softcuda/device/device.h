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
#include <vector>

#include "kernel.h"

#define API extern "C" __attribute__((visibility("default")))

namespace softcuda {

using Lock = std::unique_lock<std::mutex>;
extern std::mutex device_mutex;

// --- settings (device.cpp)
bool flag(const char* variable);
size_t memory_limit();
int compute_capability();
void log(const char* format, ...) __attribute__((format(printf, 1, 2)));

// --- errors.cpp
cudaError_t fail(cudaError_t);
CUresult refuse(CUresult, const std::string& message);  // the message is what cuGetErrorString then says

// --- memory.cpp
struct Region {                  // memory between two guard pages, filled with the poison
  char* map = nullptr;
  size_t map_bytes = 0;
  char* start = nullptr;
  size_t bytes = 0;
};
constexpr int poison = 0xA5;
Region reserve(size_t bytes);    // start is nullptr where the system has no memory
void release(const Region&);     // ends the process if something was written beside it
enum class Memory { pageable, pinned, device };
Memory memory_kind(const void*);
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
};
struct Stream {
  bool blocking;                 // ordered with the legacy default stream
  std::deque<Operation> queue;
  uint64_t queued = 0, done = 0; // numbers of the last operation
  bool running = false;
  bool capturing = false;
  std::vector<Operation> captured;
};
bool is_default(const Stream&);
std::shared_ptr<Stream> find_stream(void* handle);  // empty for a handle that was destroyed
void enqueue(Lock&, const std::shared_ptr<Stream>&, Operation);
void enqueue(Lock&, const std::shared_ptr<Stream>&, std::function<void()>);
void run_until(Lock&, const std::shared_ptr<Stream>&, uint64_t number);
void drain(Lock&, const std::shared_ptr<Stream>&);
cudaError_t answer(Lock&, const std::shared_ptr<Stream>&, uint64_t number);  // whether it is done
void when_idle(Lock&, std::function<void()>);       // at once if no work is queued

// --- launch.cpp
void launch(const Kernel&, const char* params, const unsigned grid[3], const unsigned block[3], unsigned dynamic_bytes);

// --- stats.cpp
struct KernelProfile {
  unsigned long long threads, instructions, requests;
  unsigned long long bytes[2], sectors[2], unique_sectors[2];  // of loads, of stores
};
struct Stats {
  unsigned long long h2d = 0, d2h = 0, d2d = 0;  // bytes copied
  unsigned long long mallocs = 0, pinned = 0, used = 0, peak = 0;
  unsigned long long pageable_async = 0, syncs = 0;
  std::map<std::string, unsigned long long> launches;
  std::map<std::string, KernelProfile> profiles;
};
extern Stats stats;

}  // namespace softcuda
