"""Run on one GPU, within nine minutes, the tests and benchmarks that need one, most important first.

    make gpu                                       # or, without make:
    python -m benchmarks.gpu --out gpu-results

Each part is a process with a time limit, and writes a text file with hardware, date, commit, its command and
all it printed, also when it fails or its time is up. `verdicts.txt` has what the parts say of the targets of
`benchmarks.targets`; it is written anew after each. Needs torch, triton, timm, typer, numpy and pytest.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.record import describe_machine

ROOT = Path(__file__).parents[1]
_LEAST_SECONDS = 5.0  # with less left, a part is not begun
_JUDGED = ("met: ", "NOT MET: ")


@dataclass(frozen=True)
class Part:
    """One process.

    Attributes:
        name: of its file.
        command: the module and its options.
        seconds: it may take.
        interpreted: whether kernels run in Triton's interpreter.
    """

    name: str
    command: str
    seconds: float
    interpreted: bool = False


_TESTS = "pytest -q -p no:cacheprovider --confcutdir=tests/models tests/models/fused"
_STEP = "benchmarks.step --device cuda --crop 512"
_LOSS = "benchmarks.loss --device cuda --classes 1284 --repeats 2"
PARTS = (
    Part("tests", f"{_TESTS} -m gpu", 100),
    Part("loss", f"{_LOSS} --similarity cosine", 90),
    Part("step", f"{_STEP} --batch 10 --precision bf16 --classes 1284 --repeats 5", 60),
    Part("memory", f"{_STEP} --batch 4 --precision bf16 --classes 19 --classes 100000 --repeats 0", 50),
    Part("step-fp32", f"{_STEP} --batch 4 --classes 1284 --repeats 3", 40),
    Part(
        "loss-of-a-classifier", f"{_LOSS} --dim 256 --pixels 524288 --similarity cosine --dtype bfloat16", 60
    ),
    Part("loss-bf16", f"{_LOSS} --similarity distance --dtype bfloat16", 80),
    Part("kernel-tests", f"{_TESTS} -m 'not gpu' --ignore=tests/models/fused/test_kernels_compile.py", 60),
)
# The same on a CPU, the kernels in Triton's interpreter: to see that nothing fails for a silly reason.
TOY_PARTS = (
    Part("tests", f"{_TESTS}/test_cross_entropy.py -k torch_twin", 60),
    Part(
        "loss",
        "benchmarks.loss --device cpu --pixels 64 --classes 5 --side 8 --repeats 1 --similarity cosine",
        60,
        interpreted=True,
    ),
    Part(
        "step",
        "benchmarks.step --device cpu --backbone test_resnet --crop 32 --batch 1 --repeats 1"
        " --classes 3 --classes 5",
        60,
    ),
)


def run_part(part: Part, out: Path, machine: str, seconds: float) -> list[str]:
    """Run one part for so many seconds at most, and return what it says of the targets."""
    command = [sys.executable, "-m", *shlex.split(part.command)]
    environment = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    if part.interpreted:
        environment["TRITON_INTERPRET"] = "1"
    file, began, problem = out / f"{part.name}.txt", time.monotonic(), ""
    with file.open("w", encoding="utf-8") as text:
        text.write(f"{machine}\n\npython -m {part.command}\n\n")
        text.flush()
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=text, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            code = process.wait(timeout=seconds)
            problem = "" if code == 0 else f"exit code {code}"
        except subprocess.TimeoutExpired:
            problem = f"its time was up, {seconds:.0f} s"
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)  # of its own group: itself and what it started
                process.wait()
    took = time.monotonic() - began
    with file.open("a", encoding="utf-8") as text:
        text.write(f"\n{problem or 'done'}, {took:.0f} s\n")
    lines = [f"{part.name}: {problem or 'done'}, {took:.0f} s"]
    printed = file.read_text(encoding="utf-8", errors="replace").splitlines()
    return lines + [f"  {line}" for line in printed if line.startswith(_JUDGED)]


def run_parts(parts: Sequence[Part], out: Path, machine: str, seconds: float) -> int:
    """Run the parts in turn while there is time, and return how many did not end well."""
    out.mkdir(parents=True, exist_ok=True)
    end, failed, lines = time.monotonic() + seconds, 0, [machine, ""]
    for part in parts:
        left = end - time.monotonic()
        if left < _LEAST_SECONDS:
            said = [f"{part.name}: not begun, no time was left"]
        else:
            print(f"{part.name} (at most {min(part.seconds, left):.0f} s)", flush=True)
            said = run_part(part, out, machine, min(part.seconds, left))
        failed += ": done" not in said[0]
        lines += said
        (out / "verdicts.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
        print("\n".join(said), flush=True)
    return failed


def main(
    out: Annotated[Path, typer.Option(help="Folder for the text files.")] = Path("gpu-results"),
    seconds: Annotated[float, typer.Option(help="For everything.", min=0)] = 540,
    toy: Annotated[bool, typer.Option("--toy", help="Toy sizes on a CPU, kernels interpreted.")] = False,
) -> None:
    """Run tests and benchmarks on one GPU; exit with 1 where one of them did not end well."""
    import torch

    if not toy and not torch.cuda.is_available():
        print("error: torch sees no GPU here\n  fix: --toy tries the same on the CPU", file=sys.stderr)
        raise typer.Exit(2)
    machine = describe_machine("cpu" if toy else "cuda")
    failed = run_parts(TOY_PARTS if toy else PARTS, out, machine, seconds)
    print(f"written to {out}")
    raise typer.Exit(1 if failed else 0)


if __name__ == "__main__":
    typer.run(main)
