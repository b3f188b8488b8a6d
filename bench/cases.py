"""What is measured: the inputs of each op, the work it needs, and the sizes by default.

The work is that of the plain algorithm, whatever an implementation really does: a kernel that uses
symmetry or a single pass then shows as a higher rate, never as a lower count.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

TEMPERATURE = 0.1
MOCO_TEMPERATURE = 0.2  # MoCo v2
MOMENTUM = 0.999
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
Size = Mapping[str, int]


@dataclass(frozen=True)
class Op:
    """One op of the grid.

    Attributes:
        dims: names of the numbers in a size such as 8192x128.
        trained: the inputs that get a gradient.
        flop: of a forward and a backward pass.
        flop_forward: of the forward pass alone.
        bytes: that must be read and written where no arithmetic counts, else 0.
        logits: similarities that the plain code stores.
        cpu: sizes by default.
        cuda: sizes by default, the most telling ones first.
        mixed: pairs of dtypes it is also measured in.
    """

    dims: tuple[str, ...]
    inputs: Callable[[Size, torch.dtype, torch.dtype], dict[str, Tensor]]
    trained: tuple[str, ...]
    logits: Callable[[Size], int]
    flop: Callable[[Size], int]
    flop_forward: Callable[[Size], int]
    bytes: Callable[["Case"], int]
    cpu: tuple[str, ...]
    cuda: tuple[str, ...]
    tiny: str
    mixed: tuple[str, ...] = ()


@dataclass(frozen=True)
class Case:
    """An op at one size, in one dtype, on one device, with its inputs.

    Attributes:
        dtype: a name of DTYPES, or two joined by a slash: that of the embeddings (or averages) and
            that of the queue (or of the weights that are averaged).
        inputs: name -> tensor; those the op trains are leaves that require grad.
    """

    op: str
    size: Size
    dtype: str
    device: torch.device
    inputs: Mapping[str, Tensor]

    @property
    def leaves(self) -> dict[str, Tensor]:
        """What the loss is differentiated by."""
        return {name: self.inputs[name] for name in OPS[self.op].trained}

    @property
    def label(self) -> str:
        """The size as it is typed: 8192x128."""
        return "x".join(str(n) for n in self.size.values())

    def to(self, dtype: torch.dtype) -> "Case":
        """The same case with copies of the inputs in another floating dtype."""
        inputs = {
            name: x.detach().clone().to(dtype if x.is_floating_point() else x.dtype)
            for name, x in self.inputs.items()
        }
        return Case(self.op, self.size, self.dtype, self.device, _with_leaves(self.op, inputs))


def _with_leaves(op: str, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: x.requires_grad_(name in OPS[op].trained) for name, x in inputs.items()}


def parse_size(op: str, text: str) -> Size:
    """`8192x128` as {"M": 8192, "D": 128}."""
    dims = OPS[op].dims
    parts = text.split("x")
    if len(parts) != len(dims) or not all(part.isdigit() and int(part) for part in parts):
        raise ValueError(f"bench: the size of {op} is {'x'.join(dims)}, got {text!r}")
    return dict(zip(dims, map(int, parts), strict=True))


def make_case(op: str, size: str, dtype: str, device: torch.device | str) -> Case:
    """The case with the same random inputs on every call, views of a sample being alike."""
    shape = parse_size(op, size)
    first, _, second = dtype.partition("/")
    for name in (first, second or first):
        if name not in DTYPES:
            raise ValueError(f"bench: dtype must be of {', '.join(DTYPES)}, got {name!r}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = OPS[op].inputs(shape, DTYPES[first], DTYPES[second or first])
    device = torch.device(device)
    return Case(
        op, shape, dtype, device, _with_leaves(op, {name: x.to(device) for name, x in made.items()})
    )


def _alike(rows: int, features: int) -> tuple[Tensor, Tensor]:
    x = torch.randn(rows, features)
    return x, x + 2 * torch.randn(rows, features)  # cosine about 0.45


def _views(size: Size, dtype: torch.dtype, _: torch.dtype) -> dict[str, Tensor]:
    return {"z": torch.cat(_alike(size["M"] // 2, size["D"])).to(dtype)}


def _pairs(size: Size, dtype: torch.dtype, _: torch.dtype) -> dict[str, Tensor]:
    queries, keys = _alike(size["M"], size["D"])
    return {"queries": queries.to(dtype), "keys": keys.to(dtype)}


def _image_text(size: Size, dtype: torch.dtype, _: torch.dtype) -> dict[str, Tensor]:
    image, text = _alike(size["N"], size["D"])
    return {"image": image.to(dtype), "text": text.to(dtype), "scale": torch.tensor(1 / 0.07)}


def _siglip(size: Size, dtype: torch.dtype, _: torch.dtype) -> dict[str, Tensor]:
    start = {"scale": torch.tensor(10.0), "bias": torch.tensor(-10.0)}
    return _image_text(size, dtype, dtype) | start


def _moco(size: Size, dtype: torch.dtype, stored: torch.dtype) -> dict[str, Tensor]:
    queries, keys = _alike(size["N"], size["D"])
    return {"queries": queries.to(dtype), "keys": keys.to(dtype), "queue": _queue(size, stored)}


def _queue(size: Size, dtype: torch.dtype) -> Tensor:
    return torch.nn.functional.normalize(torch.randn(size["K"], size["D"]), dim=1).to(dtype)


def _enqueue(size: Size, dtype: torch.dtype, stored: torch.dtype) -> dict[str, Tensor]:
    return {"keys": torch.randn(size["N"], size["D"]).to(dtype), "queue": _queue(size, stored)}


def _labelled(size: Size, dtype: torch.dtype, _: torch.dtype) -> dict[str, Tensor]:
    labels = torch.arange(size["M"]) % max(2, size["M"] // 16)  # 16 samples a class
    centres = torch.randn(size["M"], size["D"])[labels]
    return {"z": (centres + torch.randn(size["M"], size["D"])).to(dtype), "labels": labels}


def _cpc(size: Size, dtype: torch.dtype, _: torch.dtype) -> dict[str, Tensor]:
    K, B, T, D = size.values()
    return {
        "predictions": torch.randn(K, B, T, D).to(dtype),
        "targets": torch.randn(B, T, D).to(dtype),
    }


def _cpc_rows(size: Size) -> int:
    return sum(size["B"] * (size["T"] - k) for k in range(1, size["K"] + 1))


def resnet50(width: int) -> list[tuple[int, ...]]:
    """Shapes of the 161 parameters of a ResNet-50 whose first layer has `width` channels."""
    shapes: list[tuple[int, ...]] = []

    def add(inputs: int, outputs: int, kernel: int) -> None:
        shapes.extend([(outputs, inputs, kernel, kernel), (outputs,), (outputs,)])

    add(3, width, 7)
    inputs = width
    for stage, blocks in enumerate((3, 4, 6, 3)):
        inner = width << stage
        for block in range(blocks):
            add(inputs, inner, 1)
            add(inner, inner, 3)
            add(inner, 4 * inner, 1)
            if block == 0:
                add(inputs, 4 * inner, 1)
            inputs = 4 * inner
    return [*shapes, (1000, inputs), (1000,)]


def _weights(size: Size, dtype: torch.dtype, stored: torch.dtype) -> dict[str, Tensor]:
    made = {}
    for n, shape in enumerate(resnet50(size["width"])):
        made[f"target{n}"] = torch.randn(shape).to(dtype)
        # large, or no step at all would be within the tolerance
        made[f"source{n}"] = (torch.randn(shape) / (1 - MOMENTUM)).to(stored)
    return made


def _ema_bytes(case: Case) -> int:
    each = [(name, x.numel() * x.element_size()) for name, x in case.inputs.items()]
    return sum(size * (2 if name.startswith("target") else 1) for name, size in each)


def _enqueue_bytes(case: Case) -> int:
    keys, queue = case.inputs["keys"], case.inputs["queue"]
    return keys.numel() * (keys.element_size() + queue.element_size())


def _none(_: object) -> int:
    return 0


def _square(name: str, passes: int) -> Callable[[Size], int]:
    return lambda size: passes * size[name] ** 2 * size["D"]


_M, _N = (lambda size: size["M"] ** 2), (lambda size: size["N"] ** 2)
_ROWS_CUDA = ("8192x128", "65536x128", "1024x128", "16384x512", "8192x1024", "32768x256")
_IMAGES_CUDA = ("32768x512", "8192x512", "65536x512", "32768x768", "16384x1024", "1024x512")
_IMAGES_CPU = ("512x512", "2048x512", "8192x512")
_ROWS_CPU = ("256x128", "1024x128", "2048x512", "8192x128")

OPS: dict[str, Op] = {
    "nt_xent": Op(
        ("M", "D"), _views, ("z",), _M, _square("M", 6), _square("M", 2), _none,
        _ROWS_CPU, _ROWS_CUDA, "34x24",
    ),
    "info_nce": Op(
        ("M", "D"), _pairs, ("queries", "keys"), _M, _square("M", 6), _square("M", 2), _none,
        _ROWS_CPU, _ROWS_CUDA, "33x24",
    ),
    "moco": Op(
        ("N", "K", "D"), _moco, ("queries",), lambda s: s["N"] * s["K"],
        lambda s: 4 * s["N"] * s["K"] * s["D"], lambda s: 2 * s["N"] * s["K"] * s["D"], _none,
        ("256x4096x128", "256x65536x128"), ("256x65536x128", "1024x65536x256", "256x4096x128"),
        "8x32x24", ("float32/bfloat16",),
    ),
    "clip_loss": Op(
        ("N", "D"), _image_text, ("image", "text", "scale"), _N, _square("N", 6), _square("N", 2),
        _none, _IMAGES_CPU, _IMAGES_CUDA, "33x24",
    ),
    "sup_con": Op(
        ("M", "D"), _labelled, ("z",), _M, _square("M", 6), _square("M", 2), _none,
        ("256x128", "1024x128", "4096x128"), ("8192x128", "32768x128", "1024x128"), "33x24",
    ),
    "sigmoid_loss": Op(
        ("N", "D"), _siglip, ("image", "text", "scale", "bias"), _N, _square("N", 6),
        _square("N", 2), _none, _IMAGES_CPU, _IMAGES_CUDA, "33x24",
    ),
    "cpc_loss": Op(
        ("K", "B", "T", "D"), _cpc, ("predictions", "targets"),
        lambda s: _cpc_rows(s) * s["B"] * s["T"],
        lambda s: 6 * _cpc_rows(s) * s["B"] * s["T"] * s["D"],
        lambda s: 2 * _cpc_rows(s) * s["B"] * s["T"] * s["D"], _none,
        ("4x8x32x256", "12x8x128x256"), ("12x64x128x256", "12x8x128x512"), "2x3x7x24",
    ),
    "ema_update_": Op(
        ("width",), _weights, (), _none, _none, _none, _ema_bytes,
        ("16", "64"), ("64", "256", "16"), "2", ("float32/bfloat16",),
    ),
    "enqueue_": Op(
        ("N", "K", "D"), _enqueue, (), _none, _none, _none, _enqueue_bytes,
        ("256x65536x128",), ("256x65536x128", "4096x65536x256"), "8x32x24", ("float32/bfloat16",),
    ),
}  # fmt: skip
