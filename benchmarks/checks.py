"""What the checks of `docs/reliability.md` cost, beside loading, a training step and a run.

A model of about 1 GB of random weights and prepared text are made in a temporary folder; each check is timed
alone, in this process, with the files in memory. The first line says how busy the machine was.

    python -m benchmarks.checks [--steps 1000] [--megabytes 20]
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from collegium.base import known_digests
from collegium.base.digests import verify_folder, write_digests
from collegium.data.blocks import pack_documents
from collegium.data.collate import BlockCollator
from collegium.data.prepare import prepare_text
from collegium.data.sources import FileSource
from collegium.models.identity import module_fingerprint, reference_fingerprint
from collegium.models.loading import read_model, require_loadable
from collegium.models.settings import model_settings
from collegium.paper.preparation import byte_level_bpe
from collegium.signals.contracts import Batch
from collegium.training.publication import COMPARED_BLOCKS, read_back


BLOCK_SIZE = 1024
VOCAB_SIZE = 8192
SIZES = {"hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 18, "num_attention_heads": 16}
"""With its embeddings 240 million parameters, 0.96 GB in float32."""


class Check(NamedTuple):
    """One check: its name, how often a run does it, and its seconds each time."""

    name: str
    times: float
    seconds: float
    at_start: bool


def timed(function: Callable[[], Any], repeats: int = 3) -> float:
    """Seconds of the fastest of some calls."""
    fastest = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        fastest = min(fastest, time.perf_counter() - start)
    return fastest


def make_text(folder: Path, megabytes: int) -> PreTrainedTokenizerBase:
    """Write a text file of random words, and a tokenizer for it."""
    generator = torch.Generator().manual_seed(0)
    words = [f"{chr(97 + i % 26)}{chr(97 + i // 26 % 26)}{i:x}" for i in range(3000)]
    picks = torch.randint(len(words), (megabytes * 200_000,), generator=generator).tolist()
    lines = (" ".join(words[i] for i in picks[start : start + 400]) for start in range(0, len(picks), 400))
    (folder / "text.txt").write_text("\n".join(lines))
    return byte_level_bpe([(folder / "text.txt").read_text()[:1_000_000]], VOCAB_SIZE)


def one_step(model: Any, batch: Batch) -> None:
    """One step over one block, without a teacher."""
    model.train()
    model(input_ids=batch.input_ids, labels=batch.input_ids).loss.backward()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(parameter.grad, alpha=-1e-6)
            parameter.grad = None
    model.eval()


def of_models(folder: Path, model: Any, tokenizer: PreTrainedTokenizerBase, batch: Batch) -> Sequence[Check]:
    """Checks of weights and of a student that is published."""
    path = str(folder)
    config = model.config
    files = [Path(path, "model.safetensors")]
    plain = timed(lambda: AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32))
    whole = timed(lambda: read_model(path, reference=path, dtype=torch.float32))
    blocks = [batch] * COMPARED_BLOCKS
    first = timed(lambda: [known_digests.file_digest(file) for file in files])
    reference_fingerprint(path, config)  # which keeps the digest
    return [
        Check("headers of weights, before any work", 2, timed(lambda: require_loadable(path)), True),
        Check("report of loading, tensors", 2, max(0.0, whole - plain), True),
        Check("settings of the model", 4, timed(lambda: model_settings(path)), True),
        Check("SHA-256 of weights, the first time", 0, first, True),
        Check("SHA-256 of weights, afterwards", 4, timed(lambda: reference_fingerprint(path, config)), True),
        Check("identity of a model in memory", 0, timed(lambda: module_fingerprint(model)), True),
        Check("digests of a student's folder", 1, timed(lambda: _verified_anew(folder)), True),
        Check("digests of a student, written", 1, timed(lambda: write_digests(folder)), False),
        Check(
            "student read back, logits compared",
            1,
            timed(lambda: read_back(folder, model, model, tokenizer, blocks), repeats=1),
            False,
        ),
    ]


def _verified_anew(folder: Path) -> None:
    os.utime(folder / "config.json")  # a folder in the same state is read once in a process
    verify_folder(folder)


def of_text(folder: Path, tokenizer: PreTrainedTokenizerBase, steps: int) -> Sequence[Check]:
    """Checks of prepared text, and of the file that it was made from."""
    source = FileSource("web", str(folder / "text.txt"))

    def opened() -> Any:
        return prepare_text(
            [source],
            tokenizer,
            directory=folder / "prepared",
            block_size=BLOCK_SIZE,
            held_out_documents=10,
            add_bos=False,
            add_eos=True,
            max_bad_fraction=0.01,
            near_duplicate_threshold=0.8,
            blocks_per_shard=4096,
        )

    text = opened()
    rows = min(200, len(text.train))
    one_row = timed(lambda: [text.train[i * 7919 % len(text.train)] for i in range(rows)]) / rows
    return [
        Check("prepared text, when it is opened", 1, timed(opened), True),
        Check("prepared text, a row", steps, one_row, False),
    ]


def table(checks: Sequence[Check], step: float, loading: float, steps: int) -> str:
    """The figures as Markdown."""
    run = loading + steps * step
    lines = [
        f"| check | each time | of loading | of a step | of a run of {steps:,} steps |",
        "|---|---|---|---|---|",
    ]
    for check in checks:
        share = check.times * check.seconds / run
        of_both = f"{check.seconds / loading:.2f} | {check.seconds / step:.4f}"
        in_run = f"{share:.3%}" if check.times else "not counted"
        lines.append(f"| {check.name} | {check.seconds:.4f} s | {of_both} | {in_run} |")
    total = sum(check.times * check.seconds for check in checks)
    start = sum(check.times * check.seconds for check in checks if check.at_start)
    lines.append(f"| all of a run | {total:.2f} s, {start:.2f} s at its start | | | {total / run:.2%} |")
    return "\n".join(lines)


def main() -> None:
    """Measure, and print a table; the last line is JSON."""
    parser = argparse.ArgumentParser(description="Time the checks at the borders of a run.")
    parser.add_argument("--steps", type=int, default=1000, help="steps of one block in the run")
    parser.add_argument("--megabytes", type=int, default=20, help="of text")
    options = parser.parse_args()
    load = os.getloadavg()[0]
    print(f"load {load:.1f} on {os.cpu_count()} cores, {torch.get_num_threads()} thread(s)", flush=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["COLLEGIUM_CACHE"] = str(folder / "cache")
        tokenizer = make_text(folder, options.megabytes)
        torch.manual_seed(0)
        special = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
        config = LlamaConfig(vocab_size=len(tokenizer), **SIZES, **special, bos_token_id=None)
        model = LlamaForCausalLM(config).eval()
        model.save_pretrained(folder / "model")
        tokenizer.save_pretrained(folder / "model")
        write_digests(folder / "model")
        time.sleep(4)  # a digest is kept of files that were not written just now
        rows = pack_documents([{"text": "ab " * 3 * BLOCK_SIZE}], tokenizer, block_size=BLOCK_SIZE)
        batch = Batch.from_inputs(BlockCollator(pad_token_id=1)([rows[0]]))
        step = timed(lambda: one_step(model, batch), repeats=2)
        size = (folder / "model" / "model.safetensors").stat().st_size
        loading = timed(lambda: read_model(folder / "model", reference="model", dtype=torch.float32))
        model = read_model(folder / "model", reference="model", dtype=torch.float32)
        checks = [
            *of_models(folder / "model", model, tokenizer, batch),
            *of_text(folder, tokenizer, options.steps),
        ]
    print(f"{size / 1e9:.2f} GB of weights, {options.megabytes} MB of text")
    print(f"loading {loading:.2f} s, a step {step:.2f} s")
    print(table(checks, step, loading, options.steps))
    print(json.dumps({"load": load, "step": step, "loading": loading, "checks": [c._asdict() for c in checks]}))


if __name__ == "__main__":
    main()
