"""Record what can influence a result: versions of packages, and the processor."""

import platform
import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")  # Linux
# Instruction sets that decide how fast low-bit kernels are, under the names that Linux gives them.
INSTRUCTION_SETS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "asimd", "asimddp", "i8mm", "sve")
SYSCTL_NAMES = {"AdvSIMD": "asimd", "FEAT_DotProd": "asimddp", "FEAT_I8MM": "i8mm"}  # hw.optional.arm.* of macOS


@dataclass(frozen=True, kw_only=True)
class Processor:
    """A processor: its model name, and which of `INSTRUCTION_SETS` it has."""

    name: str
    instruction_sets: tuple[str, ...]


def environment() -> dict[str, str]:
    """Return the versions of Python and of the packages that can influence a result."""
    packages = ("sottovoce", "torch", "transformers", "compressed-tensors", "safetensors", "soxr", "soundfile")
    return {"python": platform.python_version()} | {name: version(name) for name in packages}


def processor() -> Processor:
    """Return the processor of this machine; without instruction sets on a system that does not list them."""
    if CPUINFO.is_file():
        return parse_cpuinfo(CPUINFO.read_text(encoding="utf-8", errors="replace"))
    if sys.platform == "darwin":
        command = ["/usr/sbin/sysctl", "machdep.cpu.brand_string", "hw.optional.arm", "machdep.cpu.leaf7_features"]
        return parse_sysctl(subprocess.run(command, capture_output=True, text=True, check=False).stdout)  # noqa: S603 - a fixed command
    return Processor(name=platform.processor() or platform.machine(), instruction_sets=())


def sums_of_bytes_saturate(found: Processor) -> bool:
    """Whether a processor adds products of unsigned and signed bytes in 16 bits: x86 without VNNI instructions.

    ONNX Runtime documents it under "When and why do I need to try U8U8?" (onnxruntime.ai, Quantize ONNX models).
    """
    sets = set(found.instruction_sets)
    return "avx2" in sets and sets.isdisjoint({"avx512_vnni", "avx_vnni", "amx_int8"})


def parse_cpuinfo(text: str) -> Processor:
    """Read the first processor of a `/proc/cpuinfo`, as x86 ("model name", "flags") and ARM ("Features") write it."""
    values = dict[str, str]()
    for line in text.splitlines():
        key, _, value = line.partition(":")
        values.setdefault(key.strip(), value.strip())
    flags = f"{values.get('flags', '')} {values.get('Features', '')}".split()
    name = values.get("model name") or values.get("Model") or platform.machine()
    return Processor(name=name, instruction_sets=tuple(known for known in INSTRUCTION_SETS if known in flags))


def parse_sysctl(text: str) -> Processor:
    """Read the processor from what `sysctl` of macOS prints."""
    values = dict(line.split(": ", 1) for line in text.splitlines() if ": " in line)
    found = {name for key, name in SYSCTL_NAMES.items() if values.get(f"hw.optional.arm.{key}") == "1"}
    found |= {flag.lower() for flag in values.get("machdep.cpu.leaf7_features", "").split()}
    return Processor(
        name=values.get("machdep.cpu.brand_string", platform.machine()),
        instruction_sets=tuple(known for known in INSTRUCTION_SETS if known in found),
    )
