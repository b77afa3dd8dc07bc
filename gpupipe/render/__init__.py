"""A job on an engine: what is to be rendered, where it goes, and how many jobs share a device.

    render  `render()` and `frames()`: an engine with one session      engine  `Engine`: as many as ask
    plan    the speech, how long it lasts, what must be drawn          write   one render, from plan to file
    live    speech that still comes                                    job     a render that was submitted
    queue   many jobs on several devices                               jobfile the file that lists them
    output  a video or a folder of images (`video_output`, `image_output`); `sink`: protocol
    parts   what is finished of it, with a `manifest`, its `fingerprint`, and `parts_lock`: who works on it;
            `durable`: so that it outlasts a loss of power; `join` makes one output of it, `verify` looks at both,
            `left` removes it from beside the output that was made of it
    stats   what is told of a render                                   segments  ranges of frames, encoded on their own
    precision  the model's file, as it is or in another precision      samples   frames to calibrate and judge with
    tuning  what `gpupipe tune` found, remembered                      tuned     used where an option was not given

This file imports nothing: `gpupipe.render` must be importable at once, see `gpupipe/__init__.py`.
"""
