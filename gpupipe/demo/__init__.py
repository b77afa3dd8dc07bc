"""A small character and its speech, made from nothing.

`folder` writes it; `draw`, `head`, `scene` and `paint` draw the talking head; `speech` makes the sound; `models`,
`mouth`, `full` and `graph` build the ONNX files.
"""

from gpupipe.demo.folder import DemoModel, make_demo

__all__ = ["DemoModel", "make_demo"]
