// Graphs: what a stream captured instead of queueing it, to be queued as often as is asked for.
#include "device.h"

namespace softcuda {
namespace {

struct Graph {
  std::vector<Operation> operations;
};

thread_local cudaStreamCaptureMode own_mode = cudaStreamCaptureModeGlobal;

}  // namespace

// As documented for cudaThreadExchangeStreamCaptureMode.
cudaError_t may_allocate() {
  cudaError_t answer = cudaSuccess;
  for (auto& s : capturing_streams()) {
    const bool own = s->capturer == std::this_thread::get_id();
    if (own ? s->mode == cudaStreamCaptureModeRelaxed || own_mode == cudaStreamCaptureModeRelaxed
            : s->mode != cudaStreamCaptureModeGlobal || own_mode != cudaStreamCaptureModeGlobal)
      continue;
    s->broken = true;
    answer = cudaErrorStreamCaptureUnsupported;
  }
  return answer;
}
cudaError_t may_wait_for_device(int device) {
  cudaError_t answer = cudaSuccess;
  for (auto& s : capturing_streams()) {
    if (s->device != device) continue;
    s->broken = true;
    answer = cudaErrorStreamCaptureUnsupported;
  }
  return answer;
}
API CUresult cuThreadExchangeStreamCaptureMode(CUstreamCaptureMode* mode) {
  const auto before = own_mode;
  own_mode = static_cast<cudaStreamCaptureMode>(*mode);
  *mode = static_cast<CUstreamCaptureMode>(before);
  return CUDA_SUCCESS;
}

API cudaError_t cudaStreamIsCapturing(cudaStream_t s, cudaStreamCaptureStatus* status) {
  Lock lock(device_mutex);
  auto stream = find_stream(s);
  if (!stream) return fail(cudaErrorInvalidResourceHandle);
  *status = stream->capturing ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
  return cudaSuccess;
}
API cudaError_t cudaStreamBeginCapture(cudaStream_t s, cudaStreamCaptureMode mode) {
  Lock lock(device_mutex);
  std::shared_ptr<Stream> stream;
  if (auto e = usable_stream(s, stream)) return e;
  if (is_default(*stream) || stream->capturing) return fail(cudaErrorStreamCaptureUnsupported);
  stream->capturing = true;
  stream->broken = false;
  stream->mode = mode;
  stream->capturer = std::this_thread::get_id();
  stream->captured.clear();
  return cudaSuccess;
}
API cudaError_t cudaStreamEndCapture(cudaStream_t s, cudaGraph_t* graph) {
  Lock lock(device_mutex);
  auto stream = find_stream(s);
  if (!stream || !stream->capturing) return fail(cudaErrorIllegalState);
  stream->capturing = false;
  *graph = nullptr;
  if (stream->broken) return fail(cudaErrorStreamCaptureInvalidated);
  *graph = reinterpret_cast<cudaGraph_t>(new Graph{std::move(stream->captured)});
  return cudaSuccess;
}
API cudaError_t cudaGraphInstantiate(cudaGraphExec_t* executable, cudaGraph_t graph, unsigned long long) {
  *executable = reinterpret_cast<cudaGraphExec_t>(new Graph(*reinterpret_cast<Graph*>(graph)));
  return cudaSuccess;
}
API cudaError_t cudaGraphLaunch(cudaGraphExec_t executable, cudaStream_t s) {
  Lock lock(device_mutex);
  std::shared_ptr<Stream> stream;
  if (auto e = usable_stream(s, stream)) return e;
  for (auto& op : reinterpret_cast<Graph*>(executable)->operations) enqueue(lock, stream, op);
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

}  // namespace softcuda
