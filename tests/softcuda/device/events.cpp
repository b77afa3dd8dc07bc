// Events: marks in the queue of a stream, which the host and other streams wait for.
#include <set>

#include "device.h"

namespace softcuda {
namespace {

struct Event {
  std::shared_ptr<Stream> stream;  // of the last recording
  uint64_t number = 0;
  std::shared_ptr<Clock::time_point> reached;
  bool timed = true;

  bool done() const { return !stream || stream->done >= number; }
};

std::set<void*> events;

Event* find_event(cudaEvent_t e) { return events.count(e) ? reinterpret_cast<Event*>(e) : nullptr; }

}  // namespace

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
API cudaError_t cudaStreamWaitEvent(cudaStream_t s, cudaEvent_t e, unsigned) {
  Lock lock(device_mutex);
  auto stream = find_stream(s);
  Event* event = find_event(e);
  if (!stream || !event) return fail(cudaErrorInvalidResourceHandle);
  if (!event->done()) enqueue(lock, stream, Operation{0, {}, event->stream, event->number});
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
