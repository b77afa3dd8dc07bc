"""Translation of PTX, NVIDIA's documented virtual instruction set, to C++ that a CPU runs."""
