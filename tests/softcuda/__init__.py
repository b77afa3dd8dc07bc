"""A CUDA device in software, so that GPU code is tested on machines without a GPU; see README.md."""
