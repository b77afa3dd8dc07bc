// Device and pinned memory. Every allocation lies between guard pages and is filled with a pattern, so that reading
// what was never written and reaching outside an allocation show.
#include <sys/mman.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "device.h"

namespace softcuda {
namespace {

constexpr size_t page = 4096;
constexpr size_t granule = 256;  // CUDA aligns allocations to this, and code relies on it

// By start. Never destroyed: they are looked at when the process ends.
using Regions = std::map<uintptr_t, Region>;
Regions& device_regions = *new Regions;
Regions& pinned_regions = *new Regions;
Regions& registered_regions = *new Regions;  // the host's own memory, pinned later

size_t rounded(size_t n, size_t to) { return (n + to - 1) / to * to; }

const Regions::value_type* at_or_below(const Regions& regions, uintptr_t p) {
  auto it = regions.upper_bound(p);
  return it == regions.begin() ? nullptr : &*--it;
}
const Region* containing(const Regions& regions, const void* p) {
  auto* entry = at_or_below(regions, reinterpret_cast<uintptr_t>(p));
  if (!entry) return nullptr;
  const Region& r = entry->second;
  return static_cast<const char*>(p) < r.start + std::max<size_t>(r.bytes, 1) ? &r : nullptr;
}

// The guard pages stop what goes far; what stays between an allocation and its guard pages spoils the pattern there.
void check(const Region& r) {
  const char *first = r.map + page, *last = r.map + r.map_bytes - page;
  for (const char* p = first; p < last; p++) {
    if (p == r.start) p += r.bytes;
    if (p == last) break;
    if (*p == static_cast<char>(poison)) continue;
    fprintf(stderr, "softcuda: something was written %s an allocation of %zu bytes, at offset %td\n",
            p < r.start ? "before" : "behind", r.bytes, p - r.start);
    abort();
  }
}

void forget(Regions& regions, Regions::iterator it, Lock& lock) {
  // Queued work may still use the memory: a GPU's free does not promise to wait, and must not hide a missing wait.
  Region region = it->second;
  regions.erase(it);
  when_idle(lock, [region] { release(region); });
}

cudaError_t allocate(void** p, size_t n, bool managed) {
  Lock lock(device_mutex);
  *p = nullptr;
  const int device = current_device();
  if (auto e = fail(health(device))) return e;
  if (auto e = fail(may_allocate())) return e;
  if (n > memory_limit() - stats.devices[device].used) return fail(cudaErrorMemoryAllocation);
  Region region = reserve(n);
  if (!region.start) return fail(cudaErrorMemoryAllocation);
  region.device = device;
  region.managed = managed;
  *p = region.start;
  device_regions[reinterpret_cast<uintptr_t>(*p)] = region;
  count(device, &Counters::mallocs);
  count_memory(device, static_cast<long long>(n));
  log("cudaMalloc %zu bytes at %p on device %d", n, *p, device);
  return cudaSuccess;
}

}  // namespace

Region reserve(size_t n) {
  const size_t body = rounded(std::max<size_t>(n, 1), granule), inner = rounded(body, page);
  void* map = mmap(nullptr, inner + 2 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (map == MAP_FAILED) {
    fprintf(stderr, "softcuda: the system has no map for %zu bytes (memory, or vm.max_map_count)\n", n);
    return {};
  }
  char* first = static_cast<char*>(map);
  mprotect(first, page, PROT_NONE);
  mprotect(first + page + inner, page, PROT_NONE);
  memset(first + page, poison, inner);
  return {first, inner + 2 * page, first + page + inner - body, n};
}

void release(const Region& r) {
  check(r);
  munmap(r.map, r.map_bytes);
}

Memory memory_kind(const void* p) {
  if (containing(device_regions, p)) return Memory::device;
  return containing(pinned_regions, p) || containing(registered_regions, p) ? Memory::pinned : Memory::pageable;
}

const Region* device_allocation(const void* p) { return containing(device_regions, p); }

bool inside_allocation(const void* p, size_t n) {
  const Region* r = containing(device_regions, p);
  return r && n <= static_cast<size_t>(r->start + r->bytes - static_cast<const char*>(p));
}

void check_allocations() {
  for (auto& entry : device_regions) check(entry.second);
  for (auto& entry : pinned_regions) check(entry.second);
}

std::string describe(uint64_t address) {
  char text[200];
  auto* below = at_or_below(device_regions, address);
  auto above = device_regions.upper_bound(address);
  const uint64_t past = below ? address - (below->first + below->second.bytes) : UINT64_MAX;
  const uint64_t before = above != device_regions.end() ? above->first - address : UINT64_MAX;
  if (below && address < below->first + below->second.bytes)
    snprintf(text, sizeof text, "at offset %llu of an allocation of %zu bytes",
             static_cast<unsigned long long>(address - below->first), below->second.bytes);
  else if (std::min(past, before) > (1 << 20))
    snprintf(text, sizeof text, "far from every allocation");
  else if (past <= before)
    snprintf(text, sizeof text, "%llu bytes behind the end of an allocation of %zu bytes",
             static_cast<unsigned long long>(past), below->second.bytes);
  else
    snprintf(text, sizeof text, "%llu bytes before an allocation of %zu bytes", static_cast<unsigned long long>(before),
             above->second.bytes);
  return text;
}

API cudaError_t cudaMalloc(void** p, size_t n) { return allocate(p, n, false); }
API cudaError_t cudaMallocManaged(void** p, size_t n, unsigned) { return allocate(p, n, true); }

API cudaError_t cudaFree(void* p) {
  Lock lock(device_mutex);
  if (!p) return cudaSuccess;
  auto it = device_regions.find(reinterpret_cast<uintptr_t>(p));
  if (it == device_regions.end()) return fail(cudaErrorInvalidValue);
  count_memory(it->second.device, -static_cast<long long>(it->second.bytes));
  forget(device_regions, it, lock);
  return cudaSuccess;
}

API cudaError_t cudaHostAlloc(void** p, size_t n, unsigned) {
  Lock lock(device_mutex);
  *p = nullptr;
  const int device = current_device();
  if (auto e = fail(health(device))) return e;
  if (auto e = fail(may_allocate())) return e;
  Region region = reserve(n);
  if (!region.start) return fail(cudaErrorMemoryAllocation);
  region.device = device;
  *p = region.start;
  pinned_regions[reinterpret_cast<uintptr_t>(*p)] = region;
  count(device, &Counters::pinned);
  return cudaSuccess;
}

API cudaError_t cudaFreeHost(void* p) {
  Lock lock(device_mutex);
  if (!p) return cudaSuccess;
  auto it = pinned_regions.find(reinterpret_cast<uintptr_t>(p));
  if (it == pinned_regions.end()) return fail(cudaErrorInvalidValue);
  forget(pinned_regions, it, lock);
  return cudaSuccess;
}

API cudaError_t cudaHostRegister(void* p, size_t n, unsigned) {
  Lock lock(device_mutex);
  if (memory_kind(p) != Memory::pageable) return fail(cudaErrorHostMemoryAlreadyRegistered);
  Region& region = registered_regions[reinterpret_cast<uintptr_t>(p)];
  region.start = static_cast<char*>(p);
  region.bytes = n;
  region.device = current_device();
  return cudaSuccess;
}

API cudaError_t cudaHostUnregister(void* p) {
  Lock lock(device_mutex);
  const bool was = registered_regions.erase(reinterpret_cast<uintptr_t>(p));
  return was ? cudaSuccess : fail(cudaErrorHostMemoryNotRegistered);
}

API cudaError_t cudaMemGetInfo(size_t* available, size_t* total) {
  Lock lock(device_mutex);
  const int device = current_device();
  if (auto e = fail(health(device))) return e;
  *total = memory_limit();
  *available = memory_limit() - stats.devices[device].used;
  return cudaSuccess;
}

API cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* a, const void* p) {
  Lock lock(device_mutex);
  const Memory kind = memory_kind(p);
  *a = {};
  a->type = kind == Memory::device   ? cudaMemoryTypeDevice
            : kind == Memory::pinned ? cudaMemoryTypeHost
                                     : cudaMemoryTypeUnregistered;
  a->device = cudaInvalidDeviceId;
  for (auto* regions : {&device_regions, &pinned_regions, &registered_regions})
    if (auto* region = containing(*regions, p)) a->device = region->device;
  if (kind != Memory::pageable) a->devicePointer = const_cast<void*>(p);
  if (kind != Memory::device) a->hostPointer = const_cast<void*>(p);
  return cudaSuccess;
}

}  // namespace softcuda
