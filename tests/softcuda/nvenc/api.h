// NVIDIA's encoder interface, version 13.0, as far as FFmpeg's h264_nvenc uses it: field for field as in nvEncodeAPI.h,
// without the tails that are not read or written here.
#pragma once
#include <cstddef>
#include <cstdint>

namespace nvenc {

constexpr uint32_t version = 13 << 4 | 0;

enum Status : int {
  success = 0, no_encode_device = 1, invalid_encoder_device = 3, invalid_param = 8, invalid_call = 9,
  out_of_memory = 10, lock_busy = 13, need_more_input = 17, unimplemented = 22, register_failed = 23,
};
enum PictureType : uint32_t { type_p = 0, type_b = 1, type_i = 2, type_idr = 3 };
constexpr uint32_t end_of_stream = 8;       // NV_ENC_PIC_FLAG_EOS
constexpr uint32_t nv12 = 1;                // NV_ENC_BUFFER_FORMAT_NV12

struct Guid { uint32_t data[4]; };
constexpr Guid h264 = {{0x6bc82762, 0x4ca44e63, 0x501e85aa, 0xbff621f3}};

struct OpenParams { uint32_t version, device_type; void* device; };
struct CapsParams { uint32_t version, caps; };
struct RateControl {
  uint32_t version, mode, const_qp[3], average, max, vbv, vbv_delay;
  uint32_t min_qp : 1, max_qp : 1, initial_qp : 1, aq : 1, reserved : 1, lookahead : 1, rest : 26;
  uint32_t qps[9], layers;
  uint8_t layer_qp[8], target_quality, target_quality_lsb;
  uint16_t lookahead_depth;
};
struct Config {
  uint32_t version;
  Guid profile;
  uint32_t gop_length;
  int32_t p_distance;
  uint32_t monochrome, field_mode, mv_precision;
  RateControl rate_control;
};
struct PresetConfig { uint32_t version, reserved; Config config; };
struct InitializeParams {
  uint32_t version;
  Guid codec, preset;
  uint32_t width, height, dar[2], frame_rate[2], async, picture_types, flags, private_size, reserved;
  void* private_data;
  Config* config;
};
struct InputBuffer { uint32_t version, width, height, heap, format, reserved; void *buffer, *system; };
struct LockInput { uint32_t version, flags; void *buffer, *data; uint32_t pitch; };
struct OutputBuffer { uint32_t version, size, heap, reserved; void *buffer, *data; };
struct SequenceParams { uint32_t version, size, sps, pps; void* buffer; uint32_t* written; };
struct RegisterParams {
  uint32_t version, type, width, height, pitch, sub_index;
  void *resource, *registered;
  uint32_t format;
};
struct MapParams { uint32_t version, sub_index; void *input, *registered, *mapped; uint32_t format; };
struct PictureParams {
  uint32_t version, width, height, pitch, flags, index;
  uint64_t time, duration;
  void *input, *output, *event;
  uint32_t format;
};
struct LockOutput {
  uint32_t version, flags;
  void* output;
  uint32_t *slices, index, hw_status, slice_count, bytes;
  uint64_t time, duration;
  void* data;
  uint32_t type, structure, average_qp;
};
static_assert(offsetof(Config, rate_control) == 40 && offsetof(RateControl, lookahead_depth) == 90);
static_assert(offsetof(InitializeParams, config) == 88 && offsetof(PictureParams, input) == 40);
static_assert(offsetof(LockOutput, bytes) == 36 && offsetof(LockOutput, data) == 56);

// Places in NV_ENCODE_API_FUNCTION_LIST, which has two numbers before the functions.
enum Function {
  guid_count = 1, guids = 4, caps = 7, initialize = 11, create_input = 12, destroy_input = 13, create_output = 14,
  destroy_output = 15, encode = 16, lock_output = 17, unlock_output = 18, lock_input = 19, unlock_input = 20,
  sequence_params = 22, map_input = 25, unmap_input = 26, destroy = 27, open = 29, register_resource = 30,
  unregister_resource = 31, last_error = 37, set_streams = 38, preset_config = 39, places = 41,
};
struct FunctionList { uint32_t version, reserved; void* functions[places]; };

}  // namespace nvenc
