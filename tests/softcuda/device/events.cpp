// Events: marks in the queue of a stream. An event belongs to the device that was current when it was made, and marks
// only streams of that device; any stream may wait for it.
#include <set>

#include "device.h"

namespace softcuda {
namespace {

struct Event {
  int device;
  bool timed;
  std::shared_ptr<Stream> stream;  // of the last recording
  uint64_t number = 0;
  std::shared_ptr<Clock::time_point> reached;

  bool done() const { return !stream || stream->done >= number; }
};

std::set<void*> events;

Event* find_event(cudaEvent_t e) { return events.count(e) ? reinterpret_cast<Event*>(e) : nullptr; }

cudaError_t usable_event(cudaEvent_t e, Event*& event) {
  event = find_event(e);
  return fail(event ? health(event->device) : cudaErrorInvalidResourceHandle);
}

}  // namespace

API cudaError_t cudaEventCreateWithFlags(cudaEvent_t* e, unsigned flags) {
  Lock lock(device_mutex);
  const int device = current_device();
  if (auto error = fail(health(device))) return error;
  *e = reinterpret_cast<cudaEvent_t>(new Event{device, !(flags & cudaEventDisableTiming)});
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
  std::shared_ptr<Stream> stream;
  Event* event;
  if (auto error = usable_stream(s, stream)) return error;
  if (auto error = usable_event(e, event)) return error;
  if (event->device != stream->device) {
    log("an event of device %d recorded on a stream of device %d", event->device, stream->device);
    return fail(cudaErrorInvalidResourceHandle);
  }
  if (stream->capturing) return fail(cudaErrorStreamCaptureUnsupported);
  auto reached = std::make_shared<Clock::time_point>();
  enqueue(lock, stream, [reached] { *reached = Clock::now(); });
  event->stream = stream;
  event->number = stream->queued;
  event->reached = reached;
  return cudaSuccess;
}
API cudaError_t cudaStreamWaitEvent(cudaStream_t s, cudaEvent_t e, unsigned) {
  Lock lock(device_mutex);
  std::shared_ptr<Stream> stream;
  Event* event;
  if (auto error = usable_stream(s, stream)) return error;
  if (auto error = usable_event(e, event)) return error;
  if (!event->done()) enqueue(lock, stream, Operation{0, {}, event->stream, event->number});
  return cudaSuccess;
}
API cudaError_t cudaEventSynchronize(cudaEvent_t e) {
  Lock lock(device_mutex);
  Event* event = find_event(e);
  if (!event) return fail(cudaErrorInvalidResourceHandle);
  const int device = event->device;  // another thread may record the event again, or destroy it, meanwhile
  count(device, &Counters::syncs);
  if (auto stream = event->stream) run_until(lock, stream, event->number);
  return fail(health(device));
}
API cudaError_t cudaEventQuery(cudaEvent_t e) {
  Lock lock(device_mutex);
  Event* event;
  if (auto error = usable_event(e, event)) return error;
  return answer(lock, event->stream, event->number);
}
API cudaError_t cudaEventElapsedTime(float* ms, cudaEvent_t a, cudaEvent_t b) {
  Lock lock(device_mutex);
  Event *from, *to;
  if (auto error = usable_event(a, from)) return error;
  if (auto error = usable_event(b, to)) return error;
  if (from->device != to->device || !from->timed || !to->timed || !from->reached || !to->reached)
    return fail(cudaErrorInvalidResourceHandle);
  if (!from->done() || !to->done()) return fail(cudaErrorNotReady);
  *ms = std::chrono::duration<float, std::milli>(*to->reached - *from->reached).count();
  return cudaSuccess;
}

}  // namespace softcuda
