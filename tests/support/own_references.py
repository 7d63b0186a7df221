"""Losses of one teacher in its own vocabulary by plain loops over all logits, summed and divided by nothing."""

import math
from dataclasses import replace

import torch

from collegium.assembly.cross_tokenizer import boundary_tokens
from collegium.signals.contracts import predicted_positions
from tests.support.own_vocabularies import TABLES, VOCAB_SIZE, own_batch, stretches_of


class Reference:
    """Logits of student and teacher on a batch, in full."""

    def __init__(self, model, teacher, batch):
        self.model, self.batch, self.aligned = model, batch, hasattr(teacher, "aligner")
        self.teacher = teacher.teacher if self.aligned else teacher
        self.own = own_batch(teacher, batch) if self.aligned else batch
        table = TABLES["other" if self.aligned else "student"]
        if self.aligned:
            self.stretches = stretches_of(batch, self.own, table)
            aligner = teacher.aligner
            self.shared = [*aligner.vocabulary.shared.tolist(), [aligner.student.eos, aligner.teacher.eos]]
        else:
            self.stretches = [
                replace_rows(s, [row]) for s in stretches_of(batch, batch, table) for row in s.student
            ] + unspelt(batch)
            self.shared = [[i, i] for i in range(VOCAB_SIZE)]
        self.student_out = self.forward(model.student, batch)
        with torch.no_grad():
            self.teacher_out = self.forward(self.teacher._base.model, self.own)
        self.labels, self.own_labels = (b.input_ids.flatten().roll(-1) for b in (batch, self.own))

    def forward(self, model, batch):
        inputs = {"input_ids": batch.input_ids, "position_ids": batch.position_ids, "use_cache": False}
        output = model(**inputs, output_hidden_states=True)
        return output.logits.flatten(0, 1), output.hidden_states[-1].flatten(0, 1)

    def probs(self, temperature=1.0):
        return [(logits / temperature).softmax(-1) for logits, _ in (self.student_out, self.teacher_out)]


def replace_rows(stretch, rows):
    return replace(stretch, student=rows, teacher=rows)


def unspelt(batch):
    """Rows that predict a token without bytes are positions as all others, where both have one tokenizer."""
    known = {row for s in stretches_of(batch, batch, TABLES["student"]) for row in s.student}
    rows = set(predicted_positions(batch).index.tolist()) - known
    stretch = stretches_of(batch, batch, TABLES["student"])[0]
    return [replace_rows(stretch, [row]) for row in sorted(rows)]


def sorted_distance(q, p):
    q, p = q.sort(descending=True).values, p.sort(descending=True).values
    size = max(len(q), len(p))
    return (torch.cat([q, q.new_zeros(size - len(q))]) - torch.cat([p, p.new_zeros(size - len(p))])).abs().sum()


def uld(reference):
    q, p = reference.probs(1.5)
    return sum(sorted_distance(q[s.student[0]], p[s.teacher[0]]) for s in reference.stretches)


def merged(probs, rows, labels, merge):
    chosen = [probs[row, labels[row]] for row in rows]
    if merge == "bayesian":
        return probs[rows[-1]] * math.prod(chosen[:-1], start=torch.ones((), dtype=probs.dtype))
    first = probs[rows[0]].clone()
    first[labels[rows[0]]] = math.prod(chosen, start=torch.ones((), dtype=probs.dtype))
    return first


def gold(reference, merge="bayesian", beta=0.5, weights=None):
    probs, total = reference.probs(), 0.0
    mine, theirs = (torch.tensor([pair[i] for pair in reference.shared]) for i in (0, 1))
    share = len(mine) / probs[1].shape[1]
    matched_weight, rest_weight = weights or (share, 1.0 - share)
    for s in reference.stretches:
        q = merged(probs[0], s.student, reference.labels, merge)
        p = merged(probs[1], s.teacher, reference.own_labels, merge)
        a, b = q[mine], p[theirs]
        m = beta * b + (1 - beta) * a
        total = total + matched_weight * (beta * b * (b / m).log() + (1 - beta) * a * (a / m).log()).sum()
        rest = [x[[i for i in range(len(x)) if i not in set(ids.tolist())]] for x, ids in ((q, mine), (p, theirs))]
        if len(rest[0]) and len(rest[1]):
            total = total + rest_weight * sorted_distance(*rest)
    return total


def alm(reference, tau, threshold=None):
    """Without a threshold: each stretch by itself, as it is."""
    (q, p), total = reference.probs(), 0.0
    debias = threshold is not None and reference.aligned
    ids = [boundary_tokens(TABLES[name].pieces).tolist() for name in ("student", "other")]
    chunk = [torch.ones((), dtype=q.dtype), torch.ones((), dtype=q.dtype)]
    for i, s in enumerate(reference.stretches):
        chunk[0] = chunk[0] * math.prod(q[row, reference.labels[row]] for row in s.student)
        chunk[1] = chunk[1] * math.prod(p[row, reference.own_labels[row]] for row in s.teacher)
        behind = reference.stretches[i + 1] if i + 1 < len(reference.stretches) else None
        if debias and behind is not None and behind.segment == s.segment:
            factors = [q[behind.student[0], ids[0]].sum(), p[behind.teacher[0], ids[1]].sum()]
            if not factors[1] > threshold:
                continue
            chunk = [c * factor for c, factor in zip(chunk, factors, strict=True)]
        y, x = (c.log().div(tau).sub(1e-6).exp() for c in chunk)
        total = total + x * (x / y).log() + (1 - x) * ((1 - x) / (1 - y)).log()
        chunk = [torch.ones((), dtype=q.dtype), torch.ones((), dtype=q.dtype)]
    return total


def dskd(reference, projections, temperature=2.0):
    model, total = reference.model, 0.0
    index, own_index = (predicted_positions(b).index for b in (reference.batch, reference.own))
    numbers, own_numbers = numbered(reference.batch)[index], numbered(reference.own)[own_index]
    embeddings = [m.get_input_embeddings() for m in (model.student, reference.teacher._base.model)]
    sides = []
    for embedding, batch, rows in zip(
        embeddings, (reference.batch, reference.own), (index, own_index), strict=True
    ):
        tokens = batch.input_ids.flatten()
        sides.append((embedding(tokens[rows]).detach(), embedding(tokens[rows + 1]).detach()))
    for segment in own_numbers.unique().tolist():
        a, b = index[numbers == segment], own_index[own_numbers == segment]
        inside, own_inside = numbers == segment, own_numbers == segment
        if not len(a) or not len(b):
            continue
        query = projections["query"](torch.cat([part[inside] for part in sides[0]], -1))
        keys = torch.cat([part[own_inside] for part in sides[1]], -1)
        target, states = sides[1][1][own_inside], reference.teacher_out[1][b]
        scores = query @ (keys / keys.std()).T / math.sqrt(keys.shape[-1])
        values = projections["t2s"](states / states.std() + target / target.std())
        head = model.student.get_output_embeddings().weight.detach()
        logits = (scores.softmax(-1) @ values) @ head.T
        labels = reference.labels[a]
        total = total - logits.log_softmax(-1)[torch.arange(len(a)), labels].sum()
        right = logits.argmax(-1) == labels
        u = (logits.detach() / temperature).softmax(-1)
        q = (reference.student_out[0][a] / temperature).softmax(-1)
        total = total + ((u * (u / q).log()).sum(-1) * right).sum()
        back = scores.T.softmax(-1) @ projections["s2t"](reference.student_out[1][a])
        w = (back @ reference.teacher._base.model.get_output_embeddings().weight.T / temperature).softmax(-1)
        p = (reference.teacher_out[0][b] / temperature).softmax(-1)
        total = total + (p * (p / w).log()).sum()
    return total


def numbered(batch):
    """Number of each place's segment among those of text; the padding's do not count."""
    starts = ((batch.position_ids == 0) & batch.attention_mask).flatten()
    return starts.cumsum(0)
