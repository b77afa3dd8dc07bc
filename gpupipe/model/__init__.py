"""ONNX graphs: what a lip-sync model takes and gives, opening it with a provider, and running it on bound buffers.

The only home of ONNX Runtime, which is imported when the first model is opened, and of the rewriting of graphs, for
which alone the onnx package is needed. May touch model files and the user's cache folder; knows nothing of characters,
batches or sessions of the engine.

    runtime    which providers there are, opening a graph with one, and whether it is the one in use
    signature  names, sizes and types         model    a lip-sync model, opened
    digest     what a file holds              engines  where TensorRT's built engines are kept
    rates      what the machine can do        cost     what a model costs a frame
    runner     a session's runs on bound buffers
    graphs     those runs captured and replayed   layout   NCHW or NHWC

Cutting a model in two, so that what depends on the source frame alone is computed once for each of them:

    nets       nets and their tensors         measured     types, shapes and costs, by running
    dataflow   what depends on what           mincut       the cheapest border
    split      the cut, and both nets         cpu_graph    the graph as this CPU runs it
    features   what stays with the frames     split_model  both nets, opened
    split_file both nets, kept in the cache folder

Making a model smaller and faster (docs/precision.md):

    optimise   the steps in order, and the judgement        cache      what was made, kept for the next
    graph      ONNX graphs read, cleaned, written           samples    what is calibrated with, and judged by
    fold       an export with what computes only            ranges     how large its numbers become
    half       float16                                      equalise   channels of equal ranges
    quantise   int8                                         sensitive  what does not bear that
    quality    PSNR, SSIM, the floor
"""

from gpupipe.model.model import Bindings, Model
from gpupipe.model.runtime import Provider, SessionOptions
from gpupipe.model.signature import Signature, model_shapes

__all__ = ["Bindings", "Model", "Provider", "SessionOptions", "Signature", "model_shapes"]
