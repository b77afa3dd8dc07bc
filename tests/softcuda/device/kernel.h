// What a compiled kernel and the device that runs it know of each other. Included by both.
#pragma once
#include <cstdint>

namespace softcuda {

struct Thread;

// A kernel as ptxcc.py compiles it: one object `NAME__kernel` of this type for each entry.
struct Kernel {
  const char* name;
  unsigned param_count;
  const unsigned* param_offsets;
  const unsigned* param_sizes;
  unsigned shared_bytes;   // declared in the kernel, without the launch's own
  unsigned max_threads;    // __launch_bounds__, or 0
  bool has_barriers;       // threads must be able to stop in the middle
  unsigned memory_instructions;
  void (*body)(const char* params, Thread&);
  void (*profiled)(const char* params, Thread&);  // the same, telling the device of every access
};

enum class Barrier { block, warp };

// What a kernel asks of the device while it runs.
struct Services {
  void (*wait)(Thread&, Barrier);
  void (*access)(Thread&, unsigned instruction, uint64_t address, unsigned bytes, bool store);
  void (*misaligned)(Thread&, uint64_t address, unsigned bytes);
  void (*trap)(Thread&);
};

struct Thread {
  unsigned tid[3];
  unsigned index;                // of the thread in its block
  const unsigned *ctaid, *ntid, *nctaid;
  char* shared;
  const Services* device;
  unsigned long long instructions;
};

}  // namespace softcuda
