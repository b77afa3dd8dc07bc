"""GPU-resident compositing of lip-synced avatar video."""
