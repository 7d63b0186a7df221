"""What aligning a teacher with another tokenizer adds to a training step.

A step is the student's and the teacher's passes, the whole loss, backward and AdamW. Of it alignment is the plan
(text to the teacher's tokens, common cuts) and what carrying adds to the teacher's logits and softmax, which any
teacher costs. Both are timed in turns with the step, on real text with real models, given as for recipes:

    python -m benchmarks.alignment --student MODEL --teacher MODEL --text FILE [--layers 24] [--rounds 3]
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.measure import median_seconds, rounded, take_turns
from collegium.alignment.carry import LogitCarrier
from collegium.alignment.tokenizer_match import vocab_size_of
from collegium.base.references import resolve_reference
from collegium.data.blocks import pack_documents
from collegium.data.collate import BlockCollator
from collegium.losses.chunks import chunks
from collegium.models.pretrained import load_model, load_tokenizer
from collegium.models.student import keep_layers
from collegium.signals.contracts import Batch, Capability, ItemCounts, TeacherOutput, predicted_positions
from collegium.signals.signals import CarriedSignal
from collegium.teachers.aligned import align
from collegium.teachers.local import LocalTeacher
from collegium.training.chunk_size import default_chunk_size
from collegium.training.model import DistillationModel
from collegium.training.objective import Objective


Calls = dict[str, Callable[[], object]]


def parts_of_a_step(options: argparse.Namespace) -> Calls:
    """A step, the plan, and the teacher's logits with carrying and without."""
    tokenizers = [load_tokenizer(reference) for reference in (options.student, options.teacher)]
    student, model = (load_model(ref, dtype=torch.float32) for ref in (options.student, options.teacher))
    if options.layers is not None:
        student = keep_layers(student, range(options.layers))
    vocab_size = vocab_size_of(tokenizers[0])
    own = LocalTeacher("teacher", model, vocab_size=vocab_size_of(tokenizers[1]), fingerprint="benchmark")
    teacher = align(own, *tokenizers)
    trained = DistillationModel(student.train(), Objective(["teacher"], kd_weight=0.9), vocab_size=vocab_size)
    optimizer = torch.optim.AdamW(trained.parameters(), lr=1e-5)
    lines = Path(resolve_reference(options.text)).read_text(encoding="utf-8").splitlines()
    blocks = pack_documents([{"text": line} for line in lines[:100]], tokenizers[0], block_size=options.block_size)
    inputs = BlockCollator(pad_token_id=0)([blocks[i] for i in range(options.blocks)])
    batch = Batch.from_inputs(inputs)
    positions = predicted_positions(batch)
    counts = ItemCounts(torch.tensor(len(positions)), batch.attention_mask.sum())
    rows = list(chunks(len(positions), default_chunk_size(vocab_size, torch.device("cpu"))))

    def score() -> TeacherOutput:
        return teacher.score(batch, positions, need=frozenset({Capability.TOP_K}))

    def step() -> None:
        optimizer.zero_grad()
        trained(batch, positions, [score()], counts).loss.backward()
        optimizer.step()

    signal = score().signal
    assert isinstance(signal, CarriedSignal) and isinstance(signal.carrier, LogitCarrier)
    carrier = signal.carrier
    inner = carrier.signal

    @torch.no_grad()
    def carry() -> None:
        for part in rows:
            carrier(part)

    @torch.no_grad()
    def project() -> None:
        count = len(carrier.own_labels)
        for part in chunks(count, -(-count // len(rows))):
            inner.logits(part).softmax(-1)  # type: ignore[union-attr]

    return {"step": step, "plan": lambda: teacher.read(inputs), "carry": carry, "logits and softmax": project}


def main() -> None:
    """Measure, and print one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--student", required=True)
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--text", required=True, help="a document a line")
    parser.add_argument("--layers", type=int, help="of the student; all if not given")
    parser.add_argument("--block-size", type=int, default=256)
    parser.add_argument("--blocks", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    samples = take_turns(parts_of_a_step(options), rounds=options.rounds)
    seconds = {name: median_seconds(sample) for name, sample in samples.items()}
    added = seconds["plan"] + max(0.0, seconds["carry"] - seconds["logits and softmax"])
    print(json.dumps(rounded({**seconds, "alignment": added, "share of the step": added / seconds["step"]})))


if __name__ == "__main__":
    main()
