"""Cutting a lip-sync model in two: what depends on the source frame alone, and the rest.

The first part, the *source* net, needs to run only once for each cached frame if the tensors at the border, the
*features*, stay with the frame. Where to cut is found by data flow; no name, operator or order of blocks is known.

**The rule.** The rest can be spared the nodes that depend on the visual input alone. A cut is worth what it saves in
each later frame, less what it keeps:

- a convolution or a matrix product counts the bytes of activations that it reads and writes, and a byte for every
  `MACS_A_BYTE` multiply-adds;
- any other operator (ReLU, Cast, Concat, Resize, Dequantize, …) counts a sixteenth of its bytes: providers fuse it with
  its neighbours. So it is spared where it makes the features no larger, and done again in the rest where it makes them
  larger: what is kept is the small tensor before a Resize, the int8 one before its dequantising;
- a byte that is kept costs `worth`. The visual input costs nothing: the slot has it anyway.

Among all cuts the one worth most is a minimum cut (J.-C. Picard, "Maximal closure of a graph and applications to
combinatorial problems", 1976), and is found exactly. `worth` above 1 asks more of each kept byte: fewer features, which
fit more frames in the same memory, and less saved.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from gpupipe.errors import OutputError, reason
from gpupipe.model.dataflow import RANDOM, Dataflow, part
from gpupipe.model.measured import Measurement, measure, onnx_package
from gpupipe.model.mincut import UNCUTTABLE, MinCut
from gpupipe.model.nets import Cost, Net, TensorSpec

if TYPE_CHECKING:
    import onnx

MACS_A_BYTE: Final = 16
"""Multiply-adds that take as long as a byte of activations: some 8 on CPUs with wide vectors, 40 on GPUs in float32."""

LIGHT: Final = 16
"""How many times less a byte counts that an operator without multiply-adds moves."""

LEAST_SAVING: Final = 0.05
"""Less is not worth a second net."""

SOURCE_FILE, REST_FILE = "source.onnx", "rest.onnx"


class NotSplit(NamedTuple):
    """A model that is better left whole.

    Attributes:
        reason: why, to be put after "the model is not split: ".
    """

    reason: str


@dataclass(frozen=True)
class Split:
    """A model in two nets.

    Attributes:
        source: visual → features.
        rest: features, audio, and visual if it is still needed → prediction.
        features: what stays with each cached frame.
        visual, audio, prediction: the tensors of a slot.
        needs_visual: whether the rest still reads the visual input.
        whole_cost, source_cost, rest_cost: of a frame. What depends on no input is in neither part's.
        saving: the share of the whole's work, weighed as above, that the rest is spared.
    """

    source: onnx.ModelProto
    rest: onnx.ModelProto
    features: tuple[TensorSpec, ...]
    visual: TensorSpec
    audio: TensorSpec
    prediction: TensorSpec
    needs_visual: bool
    whole_cost: Cost
    source_cost: Cost
    rest_cost: Cost
    saving: float

    @property
    def feature_bytes(self) -> int:
        """Bytes that stay with each cached frame."""
        return sum(spec.frame_bytes for spec in self.features)

    def write(self, folder: Path) -> tuple[Net, Net]:
        """Write both nets into a folder that is there, each with its own weights, which they do not share.

        Returns:
            The source net and the rest. The files are the same, byte for byte, whenever they are written.

        Raises:
            OutputError: they cannot be written.
        """
        for name, model in ((SOURCE_FILE, self.source), (REST_FILE, self.rest)):
            try:
                (folder / name).write_bytes(model.SerializeToString(deterministic=True))
            except OSError as error:
                raise OutputError(
                    f"cannot be written: {reason(error)}", file=folder / name, remedy="make the folder writable"
                ) from error
        again = (self.visual,) if self.needs_visual else ()
        return (
            Net(folder / SOURCE_FILE, (self.visual,), self.features),
            Net(folder / REST_FILE, (*again, *self.features, self.audio), (self.prediction,)),
        )


def split(
    model: onnx.ModelProto,
    *,
    file: Path = Path("model.onnx"),
    size: int | None = None,
    worth: float = 1.0,
    least_saving: float = LEAST_SAVING,
) -> Split | NotSplit:
    """Cut a lip-sync model in two.

    Args:
        model: with its weights, folded or as exported, of float32, float16 or quantised; the batch open or fixed. May
            hold what ONNX Runtime's optimiser has made of it, as long as ONNX Runtime's CPU provider runs it as it is.
        file: what errors call it.
        size: side of its images in pixels, for a model that leaves it open.
        worth: what a byte that is kept with a frame must save, in bytes; see above.
        least_saving: the least share of the model's work that must be saved for it to be split.

    Raises:
        InferenceError: it is no lip-sync model, or does not run.
        GpupipeError: the onnx package is not installed.
    """
    found = measure(model, file=file, size=size)
    signature = found.signature
    flow = Dataflow(model, found.tensors)
    live = flow.needed([signature.prediction])
    random = next((flow.nodes[number].op_type for number in live if flow.nodes[number].op_type in RANDOM), None)
    if random is not None:
        return NotSplit(f"it draws random numbers ({random})")
    if signature.audio not in flow.depends[flow.producers[signature.prediction]]:
        return NotSplit("what it draws does not depend on the speech")
    work = {number: _work(flow, found.macs, number) for number in live if flow.depends[number]}
    able = [number for number in work if flow.depends[number] == {signature.visual}]
    chosen = _cheapest(flow, work, able, set(live), worth)
    saving = sum(work[number] for number in chosen) / max(1, sum(work.values()))
    if not chosen:
        return NotSplit("nothing that depends on the source frame alone is worth keeping")
    if saving < least_saving:
        return NotSplit(f"only {saving:.1%} of its work depends on the source frame alone and is worth keeping")
    return _in_two(model, found, flow, live, chosen, saving)


def _work(flow: Dataflow, macs: dict[int, int], number: int) -> int:
    """What a node counts, in sixteenths of a byte."""
    moved = flow.read_bytes(number) + flow.written_bytes(number)
    products = macs.get(number, 0)
    return LIGHT * moved + LIGHT * products // MACS_A_BYTE if products else moved


def _cheapest(flow: Dataflow, work: dict[int, int], able: list[int], live: set[int], worth: float) -> set[int]:
    """The nodes that the rest is spared.

    On the cut's far side lie the nodes that the rest runs, at the cost of their work, and the tensors that it needs,
    all that those nodes read. A tensor that it needs of a node that it is spared is kept, at the cost of its bytes. The
    source net may well run a node that the rest runs too.
    """
    spared = set(able)
    cut = MinCut("source", "rest")
    for number in able:
        cut.edge("source", number, work[number])
        for name in filter(None, flow.nodes[number].output):
            tensor = flow.tensors.get(name)
            whole = tensor is None or tensor.frame_shape is None  # there is no telling which frame has what of it
            cost = UNCUTTABLE if whole or tensor is None else round(LIGHT * worth * tensor.frame_bytes)
            cut.edge(number, name, cost)
            for reader in live.intersection(flow.readers.get(name, ())):
                cut.edge(name, reader if reader in spared else "rest", UNCUTTABLE)
    return {number for number in cut.source_side() & spared if isinstance(number, int)}


def _in_two(
    model: onnx.ModelProto, found: Measurement, flow: Dataflow, live: list[int], chosen: set[int], saving: float
) -> Split:
    signature = found.signature
    rest = [number for number in live if number not in chosen]
    read = {name for number in rest for name in flow.reads[number]}
    names = [name for number in sorted(chosen) for name in flow.nodes[number].output if name in read]
    values = {value.name: value for value in (*model.graph.input, *model.graph.output)}
    kept = [_value(model, found, signature.visual, name) for name in names]
    needed = (values[signature.visual],) if signature.visual in read else ()

    def spec(name: str, shape: Iterable[int]) -> TensorSpec:
        return TensorSpec(name, (signature.batch, *shape), signature.dtype)

    visual, audio = (found.tensors[name].frame_shape or () for name in (signature.visual, signature.audio))
    features = tuple(
        TensorSpec(name, (signature.batch, *(tensor.frame_shape or ())), tensor.dtype, "frame")
        for name, tensor in ((name, found.tensors[name]) for name in names)
    )
    return Split(
        source=part(model, flow, [values[signature.visual]], kept),
        # Its batch is told by the first input.
        rest=part(model, flow, [values[signature.audio], *needed, *kept], [values[signature.prediction]]),
        features=features,
        visual=spec(signature.visual, visual),
        audio=spec(signature.audio, audio),
        prediction=spec(signature.prediction, (3, *visual[1:])),
        needs_visual=bool(needed),
        whole_cost=_cost(flow, found.macs, live),
        source_cost=_cost(flow, found.macs, flow.needed(names)),
        rest_cost=_cost(flow, found.macs, rest),
        saving=saving,
    )


def _value(model: onnx.ModelProto, found: Measurement, like: str, name: str) -> Any:
    """The description of a tensor as a graph's input or output, with the batch of the input `like`."""
    helper = onnx_package().helper
    (first, *_) = next(value for value in model.graph.input if value.name == like).type.tensor_type.shape.dim
    tensor = found.tensors[name]
    batch = first.dim_value or first.dim_param or "batch"
    kind = helper.np_dtype_to_tensor_dtype(tensor.dtype)
    return helper.make_tensor_value_info(name, kind, [batch, *(tensor.frame_shape or ())])


def _cost(flow: Dataflow, macs: dict[int, int], numbers: Iterable[int]) -> Cost:
    nodes = [number for number in numbers if flow.depends[number]]
    moved = sum(flow.read_bytes(number) + flow.written_bytes(number) for number in nodes)
    return Cost(sum(macs.get(number, 0) for number in nodes), moved)
