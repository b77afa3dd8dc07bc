// Streams. Work is queued and runs only when something waits for it, on the thread that waits.
#include <algorithm>
#include <cstdio>
#include <cstdlib>

#include "device.h"

namespace softcuda {

std::mutex device_mutex;

namespace {

std::map<void*, std::shared_ptr<Stream>> streams;
std::vector<std::shared_ptr<Stream>> destroyed;  // with work left, which is theirs to do when the device is waited for
std::vector<std::function<void()>> waiting_for_idle;
std::condition_variable changed;
thread_local const Stream* executing = nullptr;

const std::vector<std::shared_ptr<Stream>>& default_streams() {
  static const auto all = [] {
    std::vector<std::shared_ptr<Stream>> made;
    for (int i = 0; i < device_count(); i++) made.push_back(std::make_shared<Stream>(Stream{i, true}));
    return made;
  }();
  return all;
}

std::vector<std::shared_ptr<Stream>> all_streams() {
  auto all = default_streams();
  for (auto& s : streams) all.push_back(s.second);
  all.insert(all.end(), destroyed.begin(), destroyed.end());
  return all;
}

bool idle(const Stream& s) { return s.done == s.queued && !s.running; }

void push(Stream& s, Operation op) {
  op.number = ++s.queued;
  s.queue.push_back(std::move(op));
}

void settle() {
  if (waiting_for_idle.empty()) return;
  for (auto& s : all_streams())
    if (!idle(*s)) return;
  for (auto& f : waiting_for_idle) f();
  waiting_for_idle.clear();
}

}  // namespace

bool is_default(const Stream& s) { return &s == default_streams()[s.device].get(); }

std::shared_ptr<Stream> find_stream(void* handle) {
  // The current device's default stream has three names: none, legacy and per-thread.
  if (reinterpret_cast<uintptr_t>(handle) <= 2) return default_streams()[current_device()];
  auto it = streams.find(handle);
  return it == streams.end() ? nullptr : it->second;
}

cudaError_t usable_stream(void* handle, std::shared_ptr<Stream>& stream) {
  stream = find_stream(handle);
  return fail(stream ? health(stream->device) : cudaErrorInvalidResourceHandle);
}

void enqueue(Lock& lock, const std::shared_ptr<Stream>& stream, Operation op) {
  if (stream->capturing) {
    stream->captured.push_back(std::move(op));
    return;
  }
  // The default stream and the blocking streams of a device wait for each other.
  if (is_default(*stream)) {
    for (auto& entry : streams) {
      auto& other = entry.second;
      if (other->device != stream->device || !other->blocking || idle(*other)) continue;
      push(*stream, {0, {}, other, other->queued});
    }
  } else if (stream->blocking) {
    auto& other = default_streams()[stream->device];
    if (!idle(*other)) push(*stream, {0, {}, other, other->queued});
  }
  push(*stream, std::move(op));
  static const bool eager = flag("SOFTCUDA_EAGER");
  if (eager) drain(lock, stream);
}

void enqueue(Lock& lock, const std::shared_ptr<Stream>& stream, std::function<void()> work) {
  enqueue(lock, stream, Operation{0, std::move(work), nullptr, 0});
}

void run_until(Lock& lock, const std::shared_ptr<Stream>& stream, uint64_t number) {
  while (stream->done < number) {
    if (stream->running) {
      if (executing == stream.get()) {
        fputs("softcuda: a host function waits for its own stream, which waits for the function\n", stderr);
        abort();
      }
      changed.wait(lock);
      continue;
    }
    Operation op = std::move(stream->queue.front());
    stream->queue.pop_front();
    stream->running = true;
    if (op.after) {
      run_until(lock, op.after, op.after_number);
    } else if (op.work) {
      lock.unlock();
      executing = stream.get();
      op.work();
      executing = nullptr;
      lock.lock();
    }
    stream->running = false;
    stream->done = op.number;
    changed.notify_all();
  }
  settle();
}

void drain(Lock& lock, const std::shared_ptr<Stream>& stream) { run_until(lock, stream, stream->queued); }

void drain_device(Lock& lock, int device) {
  for (auto& s : all_streams())
    if (s->device == device) drain(lock, s);
  auto left = std::remove_if(destroyed.begin(), destroyed.end(), [](auto& s) { return idle(*s); });
  destroyed.erase(left, destroyed.end());
}

// Asking does not wait, but who asks often enough must see the end: the answer is from before, the step comes after.
cudaError_t answer(Lock& lock, const std::shared_ptr<Stream>& stream, uint64_t number) {
  if (!stream || stream->done >= number) return cudaSuccess;
  run_until(lock, stream, stream->done + 1);
  return cudaErrorNotReady;
}

// What is queued keeps its place, so that streams of other devices that wait for it go on.
void abandon(int device) {
  for (auto& s : all_streams()) {
    if (s->device != device) continue;
    for (Operation& op : s->queue) {
      if (op.callback) continue;
      op.work = nullptr;
      op.after = nullptr;
    }
  }
}

std::vector<std::shared_ptr<Stream>> capturing_streams() {
  std::vector<std::shared_ptr<Stream>> found;
  for (auto& s : streams)
    if (s.second->capturing) found.push_back(s.second);
  return found;
}

void when_idle(Lock&, std::function<void()> f) {
  waiting_for_idle.push_back(std::move(f));
  settle();
}

API cudaError_t cudaDeviceSynchronize() {
  Lock lock(device_mutex);
  const int device = current_device();
  if (auto e = fail(may_wait_for_device(device))) return e;
  count(device, &Counters::syncs);
  drain_device(lock, device);
  return fail(health(device));
}

API cudaError_t cudaStreamCreateWithFlags(cudaStream_t* s, unsigned flags) {
  Lock lock(device_mutex);
  const int device = current_device();
  if (auto e = fail(health(device))) return e;
  auto stream = std::make_shared<Stream>(Stream{device, !(flags & cudaStreamNonBlocking)});
  *s = reinterpret_cast<cudaStream_t>(stream.get());
  streams[*s] = stream;
  return cudaSuccess;
}
API cudaError_t cudaStreamCreate(cudaStream_t* s) { return cudaStreamCreateWithFlags(s, cudaStreamDefault); }
API cudaError_t cudaStreamCreateWithPriority(cudaStream_t* s, unsigned flags, int) {
  return cudaStreamCreateWithFlags(s, flags);
}
API cudaError_t cudaStreamDestroy(cudaStream_t s) {
  Lock lock(device_mutex);
  auto it = streams.find(s);
  if (it == streams.end()) return fail(cudaErrorInvalidResourceHandle);
  if (!idle(*it->second)) destroyed.push_back(it->second);
  streams.erase(it);
  return cudaSuccess;
}
API cudaError_t cudaStreamSynchronize(cudaStream_t s) {
  Lock lock(device_mutex);
  auto stream = find_stream(s);
  if (!stream) return fail(cudaErrorInvalidResourceHandle);
  if (stream->capturing) {
    stream->broken = true;
    return fail(cudaErrorStreamCaptureUnsupported);
  }
  count(stream->device, &Counters::syncs);
  drain(lock, stream);
  return fail(health(stream->device));
}
API cudaError_t cudaStreamQuery(cudaStream_t s) {
  Lock lock(device_mutex);
  std::shared_ptr<Stream> stream;
  if (auto e = usable_stream(s, stream)) return e;
  return answer(lock, stream, stream->queued);
}
API cudaError_t cudaStreamGetFlags(cudaStream_t s, unsigned* flags) {
  Lock lock(device_mutex);
  auto stream = find_stream(s);
  if (!stream) return fail(cudaErrorInvalidResourceHandle);
  *flags = stream->blocking ? cudaStreamDefault : cudaStreamNonBlocking;
  return cudaSuccess;
}
API cudaError_t cudaStreamGetPriority(cudaStream_t, int* priority) {
  *priority = 0;
  return cudaSuccess;
}
API cudaError_t cudaLaunchHostFunc(cudaStream_t s, cudaHostFn_t f, void* data) {
  Lock lock(device_mutex);
  std::shared_ptr<Stream> stream;
  if (auto e = usable_stream(s, stream)) return e;
  enqueue(lock, stream, [=] { f(data); });
  return cudaSuccess;
}
// Unlike a host function a callback is called after a fault, too, and told of it.
API cudaError_t cudaStreamAddCallback(cudaStream_t s, cudaStreamCallback_t f, void* data, unsigned) {
  Lock lock(device_mutex);
  std::shared_ptr<Stream> stream;
  if (auto e = usable_stream(s, stream)) return e;
  auto call = [=, device = stream->device] {
    Lock asking(device_mutex);
    const cudaError_t status = health(device);
    asking.unlock();
    f(s, status, data);
  };
  enqueue(lock, stream, Operation{0, call, nullptr, 0, true});
  return cudaSuccess;
}

}  // namespace softcuda
