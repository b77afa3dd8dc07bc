// The counters, and their report as JSON: at exit into SOFTCUDA_STATS, and at any time to who asks in the process.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "device.h"

namespace softcuda {

Stats stats;

namespace {

using Counter = std::pair<const char*, unsigned long long>;

std::string object(const std::vector<std::string>& members) {
  std::string text;
  for (auto& m : members) text += (text.empty() ? "" : ", ") + m;
  return "{" + text + "}";
}
std::string member(const std::string& name, const std::string& value) { return "\"" + name + "\": " + value; }
std::vector<std::string> members(std::initializer_list<Counter> counters) {
  std::vector<std::string> all;
  for (auto& c : counters) all.push_back(member(c.first, std::to_string(c.second)));
  return all;
}

std::vector<std::string> report(const Counters& c) {
  auto all = members({{"h2d_bytes", c.h2d},
                      {"d2h_bytes", c.d2h},
                      {"d2d_bytes", c.d2d},
                      {"mallocs", c.mallocs},
                      {"pinned_allocs", c.pinned},
                      {"pageable_async_copies", c.pageable_async},
                      {"syncs", c.syncs},
                      {"peak_bytes", c.peak}});
  std::vector<std::string> launches;
  for (auto& l : c.launches) launches.push_back(member(l.first, std::to_string(l.second)));
  all.push_back(member("launches", object(launches)));
  return all;
}

std::string json() {
  auto all = report(stats.total);
  std::vector<std::string> profiles;
  for (auto& entry : stats.profiles) {
    const KernelProfile& p = entry.second;
    constexpr unsigned long long sector = 32;
    profiles.push_back(member(entry.first, object(members({{"threads", p.threads},
                                                           {"ptx_instructions", p.instructions},
                                                           {"requests", p.requests},
                                                           {"load_bytes", p.bytes[0]},
                                                           {"load_sector_bytes", p.sectors[0] * sector},
                                                           {"load_unique_bytes", p.unique_sectors[0] * sector},
                                                           {"store_bytes", p.bytes[1]},
                                                           {"store_sector_bytes", p.sectors[1] * sector},
                                                           {"store_unique_bytes", p.unique_sectors[1] * sector}}))));
  }
  all.push_back(member("profile", object(profiles)));
  if (device_count() > 1) {
    std::string devices;
    for (int i = 0; i < device_count(); i++) devices += (i ? ", " : "") + object(report(stats.devices[i]));
    all.push_back(member("devices", "[" + devices + "]"));
  }
  return object(all);
}

struct AtExit {
  ~AtExit() {
    check_allocations();
    const char* path = getenv("SOFTCUDA_STATS");
    if (!path || !*path) return;
    FILE* out = fopen(path, "w");
    if (!out || fprintf(out, "%s\n", json().c_str()) < 0 || fclose(out)) {
      fprintf(stderr, "softcuda: cannot write SOFTCUDA_STATS=%s\n", path);
      abort();
    }
  }
};

}  // namespace

void count(int device, unsigned long long Counters::*counter, unsigned long long n) {
  stats.total.*counter += n;
  stats.devices[device].*counter += n;
}

void count_launch(int device, const char* kernel) {
  stats.total.launches[kernel]++;
  stats.devices[device].launches[kernel]++;
}

void count_memory(int device, long long bytes) {
  for (Counters* c : {&stats.total, &stats.devices[device]}) {
    c->used += bytes;
    c->peak = std::max(c->peak, c->used);
  }
}

// Writes at most `room` bytes, the last one zero, and returns the length of the whole text.
API size_t softcudaStats(char* text, size_t room) {
  Lock lock(device_mutex);
  const std::string all = json();
  if (room) snprintf(text, room, "%s", all.c_str());
  return all.size();
}

// At load, after `stats` is made: ended in the opposite order, so the counters are still there.
static AtExit at_exit;

}  // namespace softcuda
