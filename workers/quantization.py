"""What a model folder says of 8-bit weights: their format, and which modules have none.

Owns the three descriptions that are read: `fp8` (config.json of DeepSeek, Qwen and transformers),
`compressed-tensors` and `modelopt`, and that all others are refused by name. Torch-free. Knows
nothing of files, and not which modules there are.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from moe.base.fp8_format import Fp8Format
from switchyard.model_files import shown

MADE = Fp8Format(block=(128, 128), stored="plain")
"""What `--quantization fp8` makes, where the layout lets it have blocks of this size."""

_KEYS = ("quantization_config", "compression_config")
_MAX_PATTERNS = 100
_MAX_PATTERN = 200  # characters
_MAX_BLOCK = 1 << 14


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ModuleNames:
    """Modules by their dotted names: each with all that is in it, and by the ends of names.

    Attributes:
        names: as they are.
        patterns: regular expressions for what a name begins with.
    """

    names: frozenset[str] = frozenset()
    patterns: tuple[re.Pattern[str], ...] = ()

    def __contains__(self, module: str) -> bool:
        parts = module.split(".")
        count = len(parts)
        pieces = [".".join(parts[:n]) for n in range(1, count + 1)]
        pieces += [".".join(parts[n:]) for n in range(1, count)]
        if not self.names.isdisjoint(pieces):
            return True
        return any(pattern.match(module) for pattern in self.patterns)

    @classmethod
    def read(cls, key: str, value: Any) -> ModuleNames:
        """From a list of names, of names with ``*``, and of expressions behind ``re:``.

        Raises:
            ValueError: one line naming the key and what is wrong.
        """
        entries = value or []
        if not isinstance(entries, list) or any(type(each) is not str for each in entries):
            raise ValueError(f"{key} is {shown(value)}; it must be a list of modules' names")
        names = frozenset(each for each in entries if not _is_pattern(each))
        patterns = [each for each in entries if _is_pattern(each)]
        if len(patterns) > _MAX_PATTERNS or any(len(each) > _MAX_PATTERN for each in patterns):
            raise ValueError(
                f"{key} has {len(patterns)} patterns; at most {_MAX_PATTERNS} of {_MAX_PATTERN} "
                "characters are read"
            )
        return cls(names=names, patterns=tuple(_compiled(key, each) for each in patterns))


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Quantization:
    """Which of a model's matrices have 8-bit floats, and how they stand.

    Attributes:
        fp8: the format of all of them.
        skipped: modules whose weights have the model's type.
    """

    fp8: Fp8Format
    skipped: ModuleNames = ModuleNames()

    def format_of(self, modules: Iterable[str]) -> Fp8Format | None:
        """The format of modules that are computed as one matrix; None: the model's type.

        Raises:
            ValueError: one line naming two of them that differ.
        """
        first: dict[bool, str] = {}
        for module in modules:
            first.setdefault(module in self.skipped, module)
        if len(first) == 2:
            raise ValueError(
                f"config.json has {first[False]} quantized and {first[True]} not, which are "
                "computed as one matrix here; serve a checkpoint that has both or neither"
            )
        return self.fp8 if False in first else None


def read_quantization(raw: Mapping[str, Any]) -> Quantization | None:
    """From the contents of config.json; None where the weights are of the model's type.

    Raises:
        ValueError: one line naming the method and what of it is not built, or a key whose value
            makes no sense.
    """
    for key in _KEYS:
        if said := raw.get(key):
            method = said.get("quant_method") if isinstance(said, dict) else None
            if key == "compression_config":
                method = method or "compressed-tensors"
            read = _METHODS.get(method) if isinstance(method, str) else None
            if read is None:
                raise _refusal(key, method)
            return read(key, said)
    return None


def read_modelopt_file(raw: Mapping[str, Any]) -> Quantization | None:
    """From the contents of ModelOpt's hf_quant_config.json, which stands beside config.json.

    Raises:
        ValueError: as `read_quantization` does.
    """
    said = raw.get("quantization")
    if not isinstance(said, dict) or not said.get("quant_algo"):
        return None
    return _read_modelopt("quantization", said)


def _read_fp8(key: str, said: dict[str, Any]) -> Quantization:
    """Blocks with `weight_scale_inv`: transformers' FineGrainedFP8Config."""
    block = said.get("weight_block_size")
    if block is None:
        raise _refusal(key, "fp8", "without weight_block_size")
    _only(key, "fp8", said, "fmt", (None, "e4m3", "float8_e4m3fn"))
    _only(key, "fp8", said, "scale_fmt", (None, "float", "ue8m0"))
    _only(key, "fp8", said, "expert_dtype", (None, "fp8"))
    _only(key, "fp8", said, "modules_to_convert", (None, []))
    _only(key, "fp8", said, "activation_scheme", (None, "dynamic", "static"))
    skipped = next(
        (name for name in ("modules_to_not_convert", "ignored_layers") if said.get(name)), "ignore"
    )
    return Quantization(
        fp8=Fp8Format(block=_block(f"{key}.weight_block_size", block), suffix="_scale_inv"),
        skipped=ModuleNames.read(f"{key}.{skipped}", said.get(skipped)),
    )


def _read_compressed(key: str, said: dict[str, Any]) -> Quantization:
    """`float-quantized` of one group of linear layers: compressed_tensors' QuantizationConfig."""
    method = "compressed-tensors"
    _only(key, method, said, "format", ("float-quantized",))
    _only(key, method, said, "transform_config", (None, {}))
    sparsity = said.get("sparsity_config") or {"format": "dense"}
    if not isinstance(sparsity, dict) or sparsity.get("format", "dense") != "dense":
        raise _refusal(key, method, f"with sparsity_config {shown(sparsity)}")
    groups = said.get("config_groups")
    group = next(iter(groups.values())) if isinstance(groups, dict) and len(groups) == 1 else None
    if not isinstance(group, dict) or not isinstance(group.get("weights"), dict):
        raise _refusal(key, method, f"with config_groups {shown(groups)}")
    _only(f"{key}.config_groups", method, group, "targets", (["Linear"],))
    _only(f"{key}.config_groups", method, group, "format", (None, "float-quantized"))
    weights, where = group["weights"], f"{key}.config_groups.weights"
    for name, allowed in (
        ("type", ("float",)), ("num_bits", (8,)), ("symmetric", (None, True)),
        ("dynamic", (None, False)), ("strategy", ("tensor", "channel", "block")),
    ):  # fmt: skip
        _only(where, method, weights, name, allowed)
    formats = {"tensor": Fp8Format(stored="vector"), "channel": Fp8Format()}
    fp8 = formats.get(weights["strategy"])
    if fp8 is None:
        name = f"{where}.block_structure"
        fp8 = Fp8Format(block=_block(name, weights.get("block_structure")))
    skipped = ModuleNames.read(f"{key}.ignore", said.get("ignore"))
    return Quantization(fp8=fp8, skipped=skipped)


def _read_modelopt(key: str, said: dict[str, Any]) -> Quantization:
    """One scale a tensor: TensorRT Model Optimizer's FP8, in either file's spelling."""
    _only(key, "modelopt", said, "quant_algo", ("FP8",))
    skipped = "ignore" if said.get("ignore") else "exclude_modules"
    return Quantization(
        fp8=Fp8Format(stored="scalar"),
        skipped=ModuleNames.read(f"{key}.{skipped}", said.get(skipped)),
    )


_METHODS: dict[str, Callable[[str, dict[str, Any]], Quantization]] = {
    "fp8": _read_fp8,
    "compressed-tensors": _read_compressed,
    "modelopt": _read_modelopt,
}


def _refusal(key: str, method: Any, detail: str = "") -> ValueError:
    named = shown(method) if method else "a method without a name"
    return ValueError(
        f"{key} asks for weights quantized by {named}{detail and f' {detail}'}, which are not "
        "built; serve the model's checkpoint in bfloat16, float16 or float32"
    )


def _only(key: str, method: str, said: dict[str, Any], name: str, allowed: tuple[Any, ...]) -> None:
    """Refuse a value that is none of the allowed ones; True is not 1 here."""
    value = said.get(name)
    if not any(type(value) is type(each) and value == each for each in allowed):
        raise _refusal(key, method, f"with {name} {shown(value)}")


def _block(name: str, value: Any) -> tuple[int, int]:
    is_pair = isinstance(value, list) and len(value) == 2
    if not is_pair or any(type(side) is not int or not 0 < side <= _MAX_BLOCK for side in value):
        raise ValueError(
            f"{name} is {shown(value)}; it must be two whole numbers from 1 to {_MAX_BLOCK}"
        )
    return value[0], value[1]


def _is_pattern(entry: str) -> bool:
    return entry.startswith("re:") or "*" in entry


def _compiled(key: str, entry: str) -> re.Pattern[str]:
    """A ``*`` stands for anything, and such a name for a module with all that is in it."""
    if not entry.startswith("re:"):
        pieces = map(re.escape, entry.split("*"))
        return re.compile(rf"{'.*'.join(pieces)}(?:\.|$)")
    try:
        return re.compile(entry.removeprefix("re:"))
    except re.error as error:
        raise ValueError(f"{key} has {shown(entry)}: {error}") from None
