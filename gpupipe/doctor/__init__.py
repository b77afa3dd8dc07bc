"""What is there: in a character folder (`inspect`), and on this machine (`doctor`); what an optimised model is worth
(`optimised`). Writes nothing that stays."""

from gpupipe.doctor.doctor import doctor
from gpupipe.doctor.inspect import inspect

__all__ = ["doctor", "inspect"]
