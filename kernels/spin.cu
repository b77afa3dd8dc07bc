// spin: keeps a GPU busy for a while, to see who waits for it. One thread; launched by `gpupipe selftest` alone.
//
//   steps   i32       how many steps to take, each of which needs the one before
//   out     u32 [1]   written, or the compiler would leave the steps out
//
// The steps are those of a linear congruential generator, which no compiler shortens.
extern "C" __global__ void __launch_bounds__(1) spin(int steps, unsigned int* out) {
    unsigned int x = 1;
    for (int i = 0; i < steps; ++i) x = x * 1664525u + 1013904223u;
    *out = x;
}
