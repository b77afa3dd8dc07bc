// Streams and events. Work is queued and runs only when something waits for it, on the thread that waits.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <set>

#include "device.h"

namespace softcuda {

std::mutex device_mutex;

namespace {

struct Event {
  std::shared_ptr<Stream> stream;  // of the last recording
  uint64_t number = 0;
  std::shared_ptr<Clock::time_point> reached;
  bool timed = true;

  bool done() const { return !stream || stream->done >= number; }
};
struct Graph {
  std::vector<Operation> operations;
};

std::shared_ptr<Stream> default_stream = std::make_shared<Stream>(Stream{true});
std::map<void*, std::shared_ptr<Stream>> streams;
std::vector<std::shared_ptr<Stream>> destroyed;  // with work left, which is theirs to do when the device is waited for
std::vector<std::function<void()>> waiting_for_idle;
std::set<void*> events;
std::condition_variable changed;
thread_local const Stream* executing = nullptr;

bool idle(const Stream& s) { return s.done == s.queued && !s.running; }

void push(Stream& s, Operation op) {
  op.number = ++s.queued;
  s.queue.push_back(std::move(op));
}

bool all_idle() {
  for (auto& s : streams)
    if (!idle(*s.second)) return false;
  for (auto& s : destroyed)
    if (!idle(*s)) return false;
  return idle(*default_stream);
}

void settle() {
  if (waiting_for_idle.empty() || !all_idle()) return;
  for (auto& f : waiting_for_idle) f();
  waiting_for_idle.clear();
}

void enqueue_operation(Lock& lock, const std::shared_ptr<Stream>& stream, Operation op) {
  if (stream->capturing) {
    stream->captured.push_back(std::move(op));
    return;
  }
  // The default stream and the blocking streams wait for each other.
  if (stream == default_stream) {
    for (auto& other : streams)
      if (other.second->blocking && !idle(*other.second)) push(*stream, {0, {}, other.second, other.second->queued});
  } else if (stream->blocking && !idle(*default_stream)) {
    push(*stream, {0, {}, default_stream, default_stream->queued});
  }
  push(*stream, std::move(op));
  static const bool eager = flag("SOFTCUDA_EAGER");
  if (eager) drain(lock, stream);
}

void drain_all(Lock& lock) {
  std::vector<std::shared_ptr<Stream>> all{default_stream};
  for (auto& s : streams) all.push_back(s.second);
  all.insert(all.end(), destroyed.begin(), destroyed.end());
  for (auto& s : all) drain(lock, s);
  auto left = std::remove_if(destroyed.begin(), destroyed.end(), [](auto& s) { return idle(*s); });
  destroyed.erase(left, destroyed.end());
}

// Asking does not wait, but who asks often enough must see the end: the answer is from before, the step comes after.
cudaError_t answer(Lock& lock, const std::shared_ptr<Stream>& stream, uint64_t number) {
  if (!stream || stream->done >= number) return cudaSuccess;
  run_until(lock, stream, stream->done + 1);
  return cudaErrorNotReady;
}

Event* find_event(cudaEvent_t e) { return events.count(e) ? reinterpret_cast<Event*>(e) : nullptr; }

}  // namespace

std::shared_ptr<Stream> find_stream(void* handle) {
  // The default stream has three names: none, legacy and per-thread.
  if (reinterpret_cast<uintptr_t>(handle) <= 2) return default_stream;
  auto it = streams.find(handle);
  return it == streams.end() ? nullptr : it->second;
}

void enqueue(Lock& lock, const std::shared_ptr<Stream>& stream, std::function<void()> work) {
  enqueue_operation(lock, stream, {0, std::move(work), nullptr, 0});
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
    } else {
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

void when_idle(Lock&, std::function<void()> f) {
  waiting_for_idle.push_back(std::move(f));
  settle();
}

API cudaError_t cudaDeviceSynchronize() {
  Lock lock(device_mutex);
  stats.syncs++;
  drain_all(lock);
  return cudaSuccess;
}

API cudaError_t cudaStreamCreateWithFlags(cudaStream_t* s, unsigned flags) {
  Lock lock(device_mutex);
  auto stream = std::make_shared<Stream>(Stream{!(flags & cudaStreamNonBlocking)});
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
  if (stream->capturing) return fail(cudaErrorStreamCaptureUnsupported);
  stats.syncs++;
  drain(lock, stream);
  return cudaSuccess;
}
API cudaError_t cudaStreamQuery(cudaStream_t s) {
  Lock lock(device_mutex);
  auto stream = find_stream(s);
  if (!stream) return fail(cudaErrorInvalidResourceHandle);
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
API cudaError_t cudaStreamWaitEvent(cudaStream_t s, cudaEvent_t e, unsigned) {
  Lock lock(device_mutex);
  auto stream = find_stream(s);
  Event* event = find_event(e);
  if (!stream || !event) return fail(cudaErrorInvalidResourceHandle);
  if (!event->done()) enqueue_operation(lock, stream, {0, {}, event->stream, event->number});
  return cudaSuccess;
}
API cudaError_t cudaLaunchHostFunc(cudaStream_t s, cudaHostFn_t f, void* data) {
  Lock lock(device_mutex);
  auto stream = find_stream(s);
  if (!stream) return fail(cudaErrorInvalidResourceHandle);
  enqueue(lock, stream, [=] { f(data); });
  return cudaSuccess;
}
API cudaError_t cudaStreamAddCallback(cudaStream_t s, cudaStreamCallback_t f, void* data, unsigned) {
  Lock lock(device_mutex);
  auto stream = find_stream(s);
  if (!stream) return fail(cudaErrorInvalidResourceHandle);
  enqueue(lock, stream, [=] { f(s, cudaSuccess, data); });
  return cudaSuccess;
}

API cudaError_t cudaStreamIsCapturing(cudaStream_t s, cudaStreamCaptureStatus* status) {
  Lock lock(device_mutex);
  auto stream = find_stream(s);
  if (!stream) return fail(cudaErrorInvalidResourceHandle);
  *status = stream->capturing ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
  return cudaSuccess;
}
API cudaError_t cudaStreamBeginCapture(cudaStream_t s, cudaStreamCaptureMode) {
  Lock lock(device_mutex);
  auto stream = find_stream(s);
  if (!stream) return fail(cudaErrorInvalidResourceHandle);
  if (stream == default_stream || stream->capturing) return fail(cudaErrorStreamCaptureUnsupported);
  stream->capturing = true;
  stream->captured.clear();
  return cudaSuccess;
}
API cudaError_t cudaStreamEndCapture(cudaStream_t s, cudaGraph_t* graph) {
  Lock lock(device_mutex);
  auto stream = find_stream(s);
  if (!stream || !stream->capturing) return fail(cudaErrorIllegalState);
  stream->capturing = false;
  *graph = reinterpret_cast<cudaGraph_t>(new Graph{std::move(stream->captured)});
  return cudaSuccess;
}
API cudaError_t cudaGraphInstantiate(cudaGraphExec_t* executable, cudaGraph_t graph, unsigned long long) {
  *executable = reinterpret_cast<cudaGraphExec_t>(new Graph(*reinterpret_cast<Graph*>(graph)));
  return cudaSuccess;
}
API cudaError_t cudaGraphLaunch(cudaGraphExec_t executable, cudaStream_t s) {
  Lock lock(device_mutex);
  auto stream = find_stream(s);
  if (!stream) return fail(cudaErrorInvalidResourceHandle);
  for (auto& op : reinterpret_cast<Graph*>(executable)->operations) enqueue_operation(lock, stream, op);
  return cudaSuccess;
}
API cudaError_t cudaGraphUpload(cudaGraphExec_t, cudaStream_t) { return cudaSuccess; }
API cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  delete reinterpret_cast<Graph*>(graph);
  return cudaSuccess;
}
API cudaError_t cudaGraphExecDestroy(cudaGraphExec_t executable) {
  delete reinterpret_cast<Graph*>(executable);
  return cudaSuccess;
}

API cudaError_t cudaEventCreateWithFlags(cudaEvent_t* e, unsigned flags) {
  Lock lock(device_mutex);
  auto* event = new Event;
  event->timed = !(flags & cudaEventDisableTiming);
  *e = reinterpret_cast<cudaEvent_t>(event);
  events.insert(*e);
  return cudaSuccess;
}
API cudaError_t cudaEventCreate(cudaEvent_t* e) { return cudaEventCreateWithFlags(e, cudaEventDefault); }
API cudaError_t cudaEventDestroy(cudaEvent_t e) {
  Lock lock(device_mutex);
  Event* event = find_event(e);
  if (!event) return fail(cudaErrorInvalidResourceHandle);
  events.erase(e);
  delete event;  // what waits for it has its own hold on the stream
  return cudaSuccess;
}
API cudaError_t cudaEventRecord(cudaEvent_t e, cudaStream_t s) {
  Lock lock(device_mutex);
  auto stream = find_stream(s);
  Event* event = find_event(e);
  if (!stream || !event) return fail(cudaErrorInvalidResourceHandle);
  if (stream->capturing) return fail(cudaErrorStreamCaptureUnsupported);
  auto reached = std::make_shared<Clock::time_point>();
  enqueue(lock, stream, [reached] { *reached = Clock::now(); });
  event->stream = stream;
  event->number = stream->queued;
  event->reached = reached;
  return cudaSuccess;
}
API cudaError_t cudaEventSynchronize(cudaEvent_t e) {
  Lock lock(device_mutex);
  Event* event = find_event(e);
  if (!event) return fail(cudaErrorInvalidResourceHandle);
  stats.syncs++;
  if (event->stream) {
    auto stream = event->stream;  // another thread may record the event again meanwhile
    run_until(lock, stream, event->number);
  }
  return cudaSuccess;
}
API cudaError_t cudaEventQuery(cudaEvent_t e) {
  Lock lock(device_mutex);
  Event* event = find_event(e);
  if (!event) return fail(cudaErrorInvalidResourceHandle);
  return answer(lock, event->stream, event->number);
}
API cudaError_t cudaEventElapsedTime(float* ms, cudaEvent_t a, cudaEvent_t b) {
  Lock lock(device_mutex);
  Event *from = find_event(a), *to = find_event(b);
  if (!from || !to || !from->timed || !to->timed || !from->reached || !to->reached)
    return fail(cudaErrorInvalidResourceHandle);
  if (!from->done() || !to->done()) return fail(cudaErrorNotReady);
  *ms = std::chrono::duration<float, std::milli>(*to->reached - *from->reached).count();
  return cudaSuccess;
}

}  // namespace softcuda
