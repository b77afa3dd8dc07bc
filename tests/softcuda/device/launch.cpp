// Running a kernel: blocks one after another, and the threads of a block one after another too, or as fibres that take
// turns where the kernel has barriers.
#include <sys/mman.h>
#include <ucontext.h>

#include <algorithm>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <unordered_map>
#include <unordered_set>

#include "device.h"

namespace softcuda {
namespace {

constexpr unsigned warp_size = 32;
constexpr size_t sector_bits = 5;  // the memory system moves sectors of 32 bytes

// What a kernel does to memory, as a profiler would count it. The n-th execution of an instruction by each thread of a
// warp makes one request of the warp, whatever the order in which the threads are run here.
class Profiler {
 public:
  Profiler(const Kernel& kernel, unsigned threads)
      : kernel_(kernel), occurrences_(size_t{threads} * kernel.memory_instructions) {}

  void access(const Thread& t, unsigned instruction, uint64_t address, unsigned bytes, bool store) {
    profile_.bytes[store] += bytes;
    const uint64_t turn = occurrences_[size_t{t.index} * kernel_.memory_instructions + instruction]++;
    auto& sectors = requests_[{uint64_t{t.index / warp_size} << 32 | instruction, turn << 1 | store}];
    for (uint64_t s = address >> sector_bits; s <= (address + bytes - 1) >> sector_bits; s++) sectors.insert(s);
  }
  void end_thread(const Thread& t) {
    profile_.threads++;
    profile_.instructions += t.instructions;
  }
  void end_block() {
    for (auto& r : requests_) {
      const bool store = r.first.second & 1;
      profile_.requests++;
      profile_.sectors[store] += r.second.size();
      touched_[store].insert(r.second.begin(), r.second.end());
    }
    requests_.clear();
    std::fill(occurrences_.begin(), occurrences_.end(), 0);
  }
  void end_launch() {
    Lock lock(device_mutex);
    KernelProfile& sum = stats.profiles[kernel_.name];
    sum.threads += profile_.threads;
    sum.instructions += profile_.instructions;
    sum.requests += profile_.requests;
    for (int i = 0; i < 2; i++) {
      sum.bytes[i] += profile_.bytes[i];
      sum.sectors[i] += profile_.sectors[i];
      sum.unique_sectors[i] += touched_[i].size();
    }
  }

 private:
  using Request = std::pair<uint64_t, uint64_t>;
  struct Hash {
    size_t operator()(const Request& r) const { return r.first * 0x9E3779B97F4A7C15u ^ r.second; }
  };
  const Kernel& kernel_;
  KernelProfile profile_{};
  std::vector<uint32_t> occurrences_;
  std::unordered_map<Request, std::unordered_set<uint64_t>, Hash> requests_;
  std::unordered_set<uint64_t> touched_[2];
};

enum class State { ready, at_block_barrier, at_warp_barrier, ended };

struct Fibre {
  Thread thread;
  ucontext_t context;
  State state;
};

// Of the launch that runs on this thread of the host.
thread_local const Kernel* kernel = nullptr;
thread_local const char* params;
thread_local Profiler* profiler;
thread_local std::vector<Fibre> fibres;
thread_local ucontext_t scheduler;
thread_local Fibre* starting;

[[noreturn]] void stop(const Thread& t, const char* what) {
  fprintf(stderr, "softcuda: %s, in kernel %s, block (%u, %u, %u), thread (%u, %u, %u)\n", what, kernel->name,
          t.ctaid[0], t.ctaid[1], t.ctaid[2], t.tid[0], t.tid[1], t.tid[2]);
  abort();
}

void wait(Thread& t, Barrier barrier) {
  Fibre& f = fibres[t.index];
  f.state = barrier == Barrier::block ? State::at_block_barrier : State::at_warp_barrier;
  swapcontext(&f.context, &scheduler);
}
void access(Thread& t, unsigned instruction, uint64_t address, unsigned bytes, bool store) {
  profiler->access(t, instruction, address, bytes, store);
}
void misaligned(Thread& t, uint64_t address, unsigned bytes) {
  char text[80];
  snprintf(text, sizeof text, "misaligned access of %u bytes at 0x%llx", bytes,
           static_cast<unsigned long long>(address));
  stop(t, text);
}
void trap(Thread& t) { stop(t, "trap"); }
const Services services = {wait, access, misaligned, trap};

// An access to a guard page ends the process, as it does without this: only the message is added.
struct sigaction previous[2];
void on_fault(int number, siginfo_t* info, void*) {
  if (kernel) {
    const uint64_t address = reinterpret_cast<uint64_t>(info->si_addr);
    fprintf(stderr, "softcuda: kernel %s accessed 0x%llx, %s\n", kernel->name, static_cast<unsigned long long>(address),
            describe(address).c_str());
  }
  sigaction(number, &previous[number == SIGBUS], nullptr);
}
void watch_for_faults() {
  static const bool once = [] {
    struct sigaction action = {};
    action.sa_sigaction = on_fault;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    sigaction(SIGSEGV, &action, &previous[0]);
    sigaction(SIGBUS, &action, &previous[1]);
    return true;
  }();
  (void)once;
}

void run_body(Thread& t) {
  (profiler ? kernel->profiled : kernel->body)(params, t);
  if (profiler) profiler->end_thread(t);
}

void fibre_main() {
  Fibre* self = starting;
  run_body(self->thread);
  self->state = State::ended;
}

char* fibre_stacks(size_t bytes) {
  struct Stacks {
    char* start = nullptr;
    size_t bytes = 0;
    ~Stacks() {
      if (start) munmap(start, bytes);
    }
  };
  thread_local Stacks stacks;
  if (stacks.bytes < bytes) {
    if (stacks.start) munmap(stacks.start, stacks.bytes);
    void* p = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) {
      fputs("softcuda: no memory for the stacks of a block's threads\n", stderr);
      abort();
    }
    stacks.start = static_cast<char*>(p);
    stacks.bytes = bytes;
  }
  return stacks.start;
}

// Lets the fibres [first, last) go on if all that have not ended stand at the barrier.
bool open_barrier(size_t first, size_t last, State barrier) {
  bool any = false;
  for (size_t i = first; i < last; i++) {
    if (fibres[i].state == State::ended) continue;
    if (fibres[i].state != barrier) return false;
    any = true;
  }
  for (size_t i = first; any && i < last; i++)
    if (fibres[i].state == barrier) fibres[i].state = State::ready;
  return any;
}

void run_fibres(const std::vector<Thread>& threads) {
  constexpr size_t stack_bytes = 64 << 10;
  const size_t n = threads.size();
  char* stacks = fibre_stacks(n * stack_bytes);
  fibres.resize(n);
  for (size_t i = 0; i < n; i++) {
    Fibre& f = fibres[threads[i].index];
    f.thread = threads[i];
    f.state = State::ready;
    getcontext(&f.context);
    f.context.uc_stack.ss_sp = stacks + f.thread.index * stack_bytes;
    f.context.uc_stack.ss_size = stack_bytes;
    f.context.uc_link = &scheduler;
    makecontext(&f.context, fibre_main, 0);
  }
  for (bool more = true; more;) {
    for (auto& t : threads) {
      Fibre& f = fibres[t.index];
      if (f.state != State::ready) continue;
      starting = &f;
      swapcontext(&scheduler, &f.context);
    }
    more = open_barrier(0, n, State::at_block_barrier);
    for (size_t i = 0; i < n; i += warp_size)
      more |= open_barrier(i, std::min(n, i + warp_size), State::at_warp_barrier);
  }
  for (auto& f : fibres)
    if (f.state != State::ended) stop(f.thread, "a barrier that other threads of the block never reach");
}

}  // namespace

void launch(const Kernel& k, const char* p, const unsigned grid[3], const unsigned block[3], unsigned dynamic_bytes) {
  static const bool profiling = flag("SOFTCUDA_PROFILE"), reverse = flag("SOFTCUDA_REVERSE");
  watch_for_faults();
  const size_t n = size_t{block[0]} * block[1] * block[2], blocks = size_t{grid[0]} * grid[1] * grid[2];
  std::unique_ptr<Profiler> counting(profiling ? new Profiler(k, static_cast<unsigned>(n)) : nullptr);
  kernel = &k;
  params = p;
  profiler = counting.get();
  const Region shared = reserve(size_t{k.shared_bytes} + dynamic_bytes);
  unsigned ctaid[3];
  std::vector<Thread> threads(n);
  for (size_t j = 0; j < n; j++) {
    const auto i = static_cast<unsigned>(reverse ? n - 1 - j : j);
    threads[j] = {{i % block[0], i / block[0] % block[1], i / block[0] / block[1]}, i, ctaid, block, grid, shared.start,
                  &services, 0};
  }
  for (size_t j = 0; j < blocks; j++) {
    const size_t c = reverse ? blocks - 1 - j : j;
    ctaid[0] = static_cast<unsigned>(c % grid[0]);
    ctaid[1] = static_cast<unsigned>(c / grid[0] % grid[1]);
    ctaid[2] = static_cast<unsigned>(c / grid[0] / grid[1]);
    if (k.has_barriers) {
      run_fibres(threads);
    } else {
      for (Thread& t : threads) {
        t.instructions = 0;
        run_body(t);
      }
    }
    if (profiler) profiler->end_block();
  }
  release(shared);
  kernel = nullptr;
  if (profiler) profiler->end_launch();
}

}  // namespace softcuda
