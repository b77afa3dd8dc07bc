// NVENC in software (libnvidia-encode.so.1): what h264_nvenc of the real FFmpeg finds where a GPU has an encoder.
//
// It reads a picture at the last moment, when its packet is asked for, and gives packets in the order of decoding: a
// frame that is drawn on before its packet is out is seen in the video. Presets p1 and p2 have no B frames, the others
// three, and p6 and p7 look SOFTCUDA_NVENC_LOOKAHEAD frames ahead, too.
#include <dlfcn.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>

#include "api.h"
#include "h264.h"

#define API extern "C" __attribute__((visibility("default")))

namespace nvenc {
namespace {

struct Resource {                // in device memory, or a buffer of the encoder's own
  const uint8_t* data;
  uint32_t width, height, pitch;
  int mapped = 0;
  Bytes own;
};
struct Output {
  uint32_t number = 0;           // which packet it is for
  Bytes bytes;
};
struct Submitted {
  const uint8_t* data;           // in the frame's own memory, or a copy of the encoder's own buffer
  uint32_t pitch;
  uint64_t time, duration;
  Bytes copy;
};
struct Place {                   // in the order of decoding
  uint32_t shown, references;    // see Picture
  bool reference;
};
struct Encoder {
  int device;
  uint32_t width = 0, height = 0, p_distance = 1, lookahead = 0;
  std::map<Resource*, std::unique_ptr<Resource>> resources;
  std::map<Output*, std::unique_ptr<Output>> outputs;
  std::vector<Submitted> submitted;
  std::vector<Place> order;
  uint32_t ordered = 0, references = 0;  // frames whose place is known, and those of them that others may refer to
  std::string error;
};

std::mutex mutex;
std::set<Encoder*> sessions;
struct { unsigned opened, most, registered; } counted;
struct Frames { unsigned device, host; };
std::map<int, Frames> frames;    // that encoders of a device were given, in its memory and from the host

long long number(const char* variable, long long otherwise) {
  const char* text = getenv(variable);
  return text && *text ? atoll(text) : otherwise;
}

void* driver(const char* name) { return dlsym(dlopen("libcuda.so.1", RTLD_NOW), name); }

int device_of(const void* address, size_t bytes) {
  return reinterpret_cast<int (*)(const void*, size_t)>(driver("softcudaDeviceOf"))(address, bytes);
}
int current_device() {
  int device = -1;
  reinterpret_cast<int (*)(int*)>(driver("cuCtxGetDevice"))(&device);
  return device;
}

int refuse(Encoder* e, Status status, const char* why) {
  e->error = why;
  fprintf(stderr, "softcuda: NVENC: %s\n", why);
  return status;
}

// Frames up to `end` are known: a P frame, then the B frames that are shown before it.
void extend_order(Encoder* e, uint32_t end, bool last) {
  while (e->ordered < end) {
    const uint32_t begin = e->ordered, first = begin == 0;
    uint32_t anchor = first ? 0 : begin + e->p_distance - 1;
    if (anchor >= end) {
      if (!last) return;
      anchor = end - 1;
    }
    e->order.push_back({anchor, e->references++, true});
    for (uint32_t b = begin; b < anchor; b++) e->order.push_back({b, e->references, false});
    e->ordered = anchor + 1;
  }
}

int open_session(OpenParams* params, void** encoder) {
  std::lock_guard<std::mutex> lock(mutex);
  *encoder = nullptr;
  if (static_cast<long long>(sessions.size()) >= number("SOFTCUDA_NVENC_SESSIONS", 8)) return out_of_memory;
  int (*push)(void*), (*pop)(void**);
  push = reinterpret_cast<decltype(push)>(driver("cuCtxPushCurrent_v2"));
  pop = reinterpret_cast<decltype(pop)>(driver("cuCtxPopCurrent_v2"));
  if (push(params->device)) return invalid_encoder_device;
  auto* e = new Encoder;
  e->device = current_device();
  pop(nullptr);
  sessions.insert(e);
  counted.opened++;
  if (sessions.size() > counted.most) counted.most = sessions.size();
  *encoder = e;
  return success;
}
int destroy_session(Encoder* e) {
  std::lock_guard<std::mutex> lock(mutex);
  sessions.erase(e);
  delete e;
  return success;
}

int get_guid_count(Encoder*, uint32_t* count) {
  *count = 1;
  return success;
}
int get_guids(Encoder*, Guid* guids, uint32_t, uint32_t* count) {
  *guids = h264;
  *count = 1;
  return success;
}
int get_caps(Encoder*, Guid, CapsParams*, int* value) {
  *value = 4096;
  return success;
}
int get_preset(Encoder*, Guid, Guid preset, uint32_t, PresetConfig* p) {
  const uint32_t p1 = 0xfc0a8d3e, p2 = 0xf581cfb8, p6 = 0x8e75c279, p7 = 0x84848c12, name = preset.data[0];
  p->config.gop_length = 250;
  p->config.p_distance = name == p1 || name == p2 ? 1 : 4;
  if (name == p6 || name == p7) {
    p->config.rate_control.lookahead = 1;
    p->config.rate_control.lookahead_depth = number("SOFTCUDA_NVENC_LOOKAHEAD", 20);
  }
  return success;
}
int initialize_encoder(Encoder* e, InitializeParams* p) {
  const Config& c = *p->config;
  e->width = p->width;
  e->height = p->height;
  e->p_distance = c.p_distance < 1 ? 1 : c.p_distance;
  e->lookahead = c.rate_control.lookahead ? c.rate_control.lookahead_depth : 0;
  return success;
}
int nothing(Encoder*, void*, void*) { return success; }
const char* get_last_error(Encoder* e) { return e->error.c_str(); }

Resource* add(Encoder* e, Resource resource) {
  auto owned = std::make_unique<Resource>(std::move(resource));
  Resource* r = owned.get();
  e->resources[r] = std::move(owned);
  return r;
}
int create_input_buffer(Encoder* e, InputBuffer* b) {
  if (b->format != nv12) return refuse(e, invalid_param, "an input buffer that is not NV12");
  const uint32_t pitch = (b->width + 63) / 64 * 64;
  Resource* r = add(e, {nullptr, b->width, b->height, pitch, 0, Bytes(size_t(pitch) * (b->height + b->height / 2))});
  r->data = r->own.data();
  b->buffer = r;
  return success;
}
int lock_input_buffer(Encoder* e, LockInput* l) {
  auto* r = static_cast<Resource*>(l->buffer);
  if (!e->resources.count(r)) return refuse(e, invalid_param, "an input buffer that is not there");
  l->data = r->own.data();
  l->pitch = r->pitch;
  return success;
}
int remove_resource(Encoder* e, Resource* r) {
  if (r->mapped) return refuse(e, invalid_call, "a resource is unregistered while it is mapped");
  return e->resources.erase(r) ? success : refuse(e, invalid_param, "a resource that is not registered");
}
int register_frame(Encoder* e, RegisterParams* p) {
  const size_t bytes = size_t(p->pitch) * (p->height + p->height / 2);
  if (p->format != nv12 || p->pitch % 16) return refuse(e, register_failed, "neither NV12 nor a pitch of 16 bytes");
  if (device_of(p->resource, bytes) != e->device)
    return refuse(e, register_failed, "a frame that is not memory of the encoder's GPU, in one piece");
  p->registered = add(e, {static_cast<uint8_t*>(p->resource), p->width, p->height, p->pitch, 0, {}});
  std::lock_guard<std::mutex> lock(mutex);
  counted.registered++;
  return success;
}
int map_frame(Encoder* e, MapParams* p) {
  auto* r = static_cast<Resource*>(p->registered);
  if (!e->resources.count(r) || r->mapped) return refuse(e, invalid_param, "a frame that cannot be mapped");
  r->mapped = 1;
  p->mapped = r;
  p->format = nv12;
  return success;
}
int unmap_frame(Encoder* e, Resource* r) {
  if (!e->resources.count(r) || !r->mapped) return refuse(e, invalid_param, "a frame that is not mapped");
  r->mapped = 0;
  return success;
}

int create_output_buffer(Encoder* e, OutputBuffer* b) {
  auto owned = std::make_unique<Output>();
  b->buffer = owned.get();
  e->outputs[owned.get()] = std::move(owned);
  return success;
}
int destroy_output_buffer(Encoder* e, Output* o) { return e->outputs.erase(o) ? success : invalid_param; }

int get_sequence_params(Encoder* e, SequenceParams* p) {
  const Bytes h = headers(e->width, e->height, e->p_distance > 1);
  memcpy(p->buffer, h.data(), h.size());
  *p->written = h.size();
  return success;
}

int encode_picture(Encoder* e, PictureParams* p) {
  if (p->flags & end_of_stream) {
    extend_order(e, e->submitted.size(), true);
    return success;
  }
  auto* r = static_cast<Resource*>(p->input);
  auto* o = static_cast<Output*>(p->output);
  if (!e->resources.count(r) || !e->outputs.count(o)) return refuse(e, invalid_param, "buffers that are not there");
  {
    std::lock_guard<std::mutex> lock(mutex);
    (r->own.empty() ? frames[e->device].device : frames[e->device].host)++;
  }
  o->number = e->submitted.size();
  e->submitted.push_back({r->data, r->pitch, p->time, p->duration, r->own});
  if (!r->own.empty()) e->submitted.back().data = e->submitted.back().copy.data();
  if (e->submitted.size() <= e->lookahead) return need_more_input;
  const uint32_t known = e->submitted.size() - e->lookahead, before = e->order.size();
  extend_order(e, known, false);
  return e->order.size() > before ? success : need_more_input;
}

int lock_bitstream(Encoder* e, LockOutput* l) {
  auto* o = static_cast<Output*>(l->output);
  if (!e->outputs.count(o)) return refuse(e, invalid_param, "an output that is not there");
  if (o->number >= e->order.size()) return refuse(e, lock_busy, "a packet is asked for before its frames have come");
  const Place& place = e->order[o->number];
  const Submitted& s = e->submitted[place.shown];
  o->bytes = coded({s.data, e->width, e->height, s.pitch, place.shown, place.references, place.reference});
  l->index = place.shown;
  l->time = s.time;
  l->duration = s.duration;
  l->data = o->bytes.data();
  l->bytes = o->bytes.size();
  l->type = place.references == 0 ? type_idr : place.reference ? type_p : type_b;
  l->average_qp = 1;
  return success;
}

int lacking() { return unimplemented; }

}  // namespace

API int NvEncodeAPIGetMaxSupportedVersion(uint32_t* supported) {
  *supported = number("SOFTCUDA_NVENC", 0) ? version : 0;
  return success;
}
API int NvEncodeAPICreateInstance(FunctionList* list) {
  for (void*& function : list->functions) function = reinterpret_cast<void*>(lacking);
  const auto set = [list](Function place, auto* function) {
    list->functions[place] = reinterpret_cast<void*>(function);
  };
  set(guid_count, get_guid_count);
  set(guids, get_guids);
  set(caps, get_caps);
  set(preset_config, get_preset);
  set(open, open_session);
  set(destroy, destroy_session);
  set(initialize, initialize_encoder);
  set(set_streams, nothing);
  set(last_error, get_last_error);
  set(create_input, create_input_buffer);
  set(destroy_input, remove_resource);
  set(lock_input, lock_input_buffer);
  set(unlock_input, nothing);
  set(create_output, create_output_buffer);
  set(destroy_output, destroy_output_buffer);
  set(register_resource, register_frame);
  set(unregister_resource, remove_resource);
  set(map_input, map_frame);
  set(unmap_input, unmap_frame);
  set(sequence_params, get_sequence_params);
  set(encode, encode_picture);
  set(lock_output, lock_bitstream);
  set(unlock_output, nothing);
  return success;
}

// As JSON: how many encoders were opened, are open, and were so at a time; frames registered; and for each device the
// frames that its encoders were given in its memory, and from the host.
API void softcudaNvencStats(char* text, size_t size) {
  std::lock_guard<std::mutex> lock(mutex);
  std::string devices;
  for (const auto& [device, given] : frames)
    devices += (devices.empty() ? "\"" : ", \"") + std::to_string(device) + "\": {\"device\": " +
               std::to_string(given.device) + ", \"host\": " + std::to_string(given.host) + "}";
  snprintf(text, size, "{\"opened\": %u, \"open\": %zu, \"most\": %u, \"registered\": %u, \"devices\": {%s}}",
           counted.opened, sessions.size(), counted.most, counted.registered, devices.c_str());
}

}  // namespace nvenc
