// Copies and fills, checked against the allocations and counted by direction.
#include <cstring>

#include "device.h"

namespace softcuda {
namespace {

struct Rows {  // a rectangle of bytes; a plain copy is one row
  char* to;
  size_t to_pitch;
  const char* from;
  size_t from_pitch;
  size_t width, height;

  void run() const {
    for (size_t y = 0; y < height; y++) memcpy(to + y * to_pitch, from + y * from_pitch, width);
  }
};

size_t extent(size_t pitch, const Rows& r) { return r.height ? (r.height - 1) * pitch + r.width : 0; }

// The device whose memory it is; `otherwise` for the host's.
int device_of(const void* p, int otherwise) {
  const Region* region = device_allocation(p);
  return region ? region->device : otherwise;
}

cudaError_t copy(Lock& lock, const Rows& r, cudaMemcpyKind kind, void* handle, bool async) {
  std::shared_ptr<Stream> stream;
  if (auto e = usable_stream(handle, stream)) return e;
  const size_t bytes = r.width * r.height;
  if (!bytes) return cudaSuccess;
  if (r.height > 1 && (r.width > r.to_pitch || r.width > r.from_pitch)) return fail(cudaErrorInvalidPitchValue);
  const Memory to = memory_kind(r.to), from = memory_kind(r.from);
  const bool to_device = to == Memory::device, from_device = from == Memory::device;
  const cudaMemcpyKind actual = to_device ? from_device ? cudaMemcpyDeviceToDevice : cudaMemcpyHostToDevice
                                : from_device ? cudaMemcpyDeviceToHost
                                              : cudaMemcpyHostToHost;
  if (kind != cudaMemcpyDefault && kind != actual) return fail(cudaErrorInvalidValue);
  if (to_device && !inside_allocation(r.to, extent(r.to_pitch, r))) return fail(cudaErrorInvalidValue);
  if (from_device && !inside_allocation(r.from, extent(r.from_pitch, r))) return fail(cudaErrorInvalidValue);
  // The memory may be another device's than the stream: a copy, unlike a kernel, reaches it.
  const int source = device_of(r.from, stream->device), target = device_of(r.to, stream->device);
  if (auto e = fail(health(source))) return e;
  if (auto e = fail(health(target))) return e;
  if (actual == cudaMemcpyHostToDevice) count(target, &Counters::h2d, bytes);
  if (actual == cudaMemcpyDeviceToHost) count(source, &Counters::d2h, bytes);
  if (actual == cudaMemcpyDeviceToDevice) count(target, &Counters::d2d, bytes);
  if (from_device && to_device && source != target && is_default(*stream)) {
    // Between two devices a default stream is ordered with all the work of both.
    drain_device(lock, source);
    drain_device(lock, target);
    async = false;
  }

  const bool pageable = to == Memory::pageable || from == Memory::pageable;
  if (async && pageable) count(stream->device, &Counters::pageable_async);
  if (async && actual == cudaMemcpyHostToDevice && pageable) {
    // CUDA stages a pageable source before the call returns, so the caller may overwrite it.
    Rows staged = r;
    auto copied = std::make_shared<std::vector<char>>(bytes);
    Rows{copied->data(), r.width, r.from, r.from_pitch, r.width, r.height}.run();
    staged.from_pitch = r.width;
    enqueue(lock, stream, [staged, copied]() mutable {
      staged.from = copied->data();
      staged.run();
    });
    return cudaSuccess;
  }
  enqueue(lock, stream, [r] { r.run(); });
  if (async && !pageable) return cudaSuccess;
  drain(lock, stream);
  return fail(health(stream->device));
}

cudaError_t copy(const Rows& r, cudaMemcpyKind kind, void* handle, bool async) {
  Lock lock(device_mutex);
  return copy(lock, r, kind, handle, async);
}

cudaError_t copy_peer(const Rows& r, int to, int from, void* handle, bool async) {
  Lock lock(device_mutex);
  if (!device_exists(to) || !device_exists(from)) return fail(cudaErrorInvalidDevice);
  if (!r.width) return cudaSuccess;
  if (device_of(r.to, -1) != to || device_of(r.from, -1) != from) return fail(cudaErrorInvalidValue);
  return copy(lock, r, cudaMemcpyDeviceToDevice, handle, async);
}

Rows row(void* to, const void* from, size_t n) {
  return {static_cast<char*>(to), n, static_cast<const char*>(from), n, n, 1};
}
Rows rows(void* to, size_t to_pitch, const void* from, size_t from_pitch, size_t width, size_t height) {
  return {static_cast<char*>(to), to_pitch, static_cast<const char*>(from), from_pitch, width, height};
}

}  // namespace

API cudaError_t cudaMemcpy(void* to, const void* from, size_t n, cudaMemcpyKind kind) {
  return copy(row(to, from, n), kind, nullptr, false);
}
API cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t n, cudaMemcpyKind kind, cudaStream_t stream) {
  return copy(row(to, from, n), kind, stream, true);
}
API cudaError_t cudaMemcpy2D(void* to, size_t to_pitch, const void* from, size_t from_pitch, size_t width,
                             size_t height, cudaMemcpyKind kind) {
  return copy(rows(to, to_pitch, from, from_pitch, width, height), kind, nullptr, false);
}
API cudaError_t cudaMemcpy2DAsync(void* to, size_t to_pitch, const void* from, size_t from_pitch, size_t width,
                                  size_t height, cudaMemcpyKind kind, cudaStream_t stream) {
  return copy(rows(to, to_pitch, from, from_pitch, width, height), kind, stream, true);
}
API cudaError_t cudaMemcpyPeer(void* to, int to_device, const void* from, int from_device, size_t n) {
  return copy_peer(row(to, from, n), to_device, from_device, nullptr, false);
}
API cudaError_t cudaMemcpyPeerAsync(void* to, int to_device, const void* from, int from_device, size_t n,
                                    cudaStream_t stream) {
  return copy_peer(row(to, from, n), to_device, from_device, stream, true);
}
API cudaError_t cudaMemsetAsync(void* to, int value, size_t n, cudaStream_t handle) {
  Lock lock(device_mutex);
  std::shared_ptr<Stream> stream;
  if (auto e = usable_stream(handle, stream)) return e;
  if (!n) return cudaSuccess;
  if (!inside_allocation(to, n)) return fail(cudaErrorInvalidValue);
  const Region& region = *device_allocation(to);
  if (region.device != stream->device && !region.managed) {  // the device itself fills, and cannot reach it
    log("memory of device %d filled on a stream of device %d", region.device, stream->device);
    return fail(cudaErrorInvalidValue);
  }
  enqueue(lock, stream, [=] { memset(to, value, n); });
  return cudaSuccess;
}
API cudaError_t cudaMemset(void* to, int value, size_t n) { return cudaMemsetAsync(to, value, n, nullptr); }

}  // namespace softcuda
