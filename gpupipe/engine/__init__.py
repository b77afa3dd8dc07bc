"""What lives as long as a process: one device, its resident characters, opened models, slots, and the scheduler.

An engine takes the next frames of all its sessions, makes batches of those that share a model, has them prepared,
predicted and pasted, and hands each finished frame to its session as a surface. It uses every package below it, and
knows nothing of files that are written: that is `render`'s.

    core       sessions taken in, batches sent out, errors led to whom they concern
    scheduler  which frames make the next batch, and when it leaves            session   one speech of one character
    source     what it sees of a session; `frame_task`, what it starts         timetable how long batches take
    flight     a batch under way, step by step                                 pipeline  the threads of the steps
    holdings   what is opened once and shared: models and lanes (`shelf`, `lane`), characters (`residents`), `surfaces`
    ahead      a character that is larger than its memory: what is decoded ahead of a session
    backend    what is asked of a device: the CPU's answers; `gpu_backend` a GPU's; `opening` picks one
"""

from gpupipe.engine.core import EngineCore
from gpupipe.engine.opening import open_backend
from gpupipe.engine.order import SessionOrder
from gpupipe.engine.session import Session

__all__ = ["EngineCore", "Session", "SessionOrder", "open_backend"]
