"""What lives as long as a process: one device, its resident characters, opened models, slots, and the scheduler.

An engine takes the next frames of all its sessions, makes batches of those that share a model, has them prepared,
predicted and pasted, and hands each finished frame to its session as a surface. It uses every room below it, and knows
nothing of files that are written: that is `render`'s.
"""
