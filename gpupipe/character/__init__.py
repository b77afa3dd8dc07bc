"""A folder on disk → a Character: videos probed, rectangles checked, every fault named by file, field and value.

May touch the folder and read it with `media`; decodes no frame, opens no model and no device. Gives the `Character`
that plans, frames and speech start from, all faults of a folder at once (`examine`, for the doctor), and the warning
by which what is odd, but does no harm, is told.
"""

from gpupipe.character.folder import Character, GpupipeWarning, examine

__all__ = ["Character", "GpupipeWarning", "examine"]
