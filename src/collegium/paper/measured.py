"""Reads the results' JSON, for the page, its claims and its figures. No torch here.

It alone reads the keys of rows and tasks that `collegium.paper.results` and `collegium.paper.task_scores` write.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from collegium.base.digests import read_sealed
from collegium.paper.spread import Content, Estimate, Spread, finite, over_seeds


EXPERIMENTS = ("table1", "figure2", "figure3", "conditions")
"""In the order of the page."""


@dataclass(frozen=True)
class Comparison:
    """The difference of a row from the baseline.

    Attributes:
        over_seeds: The mean difference with what seeds say of chance.
        over_units: The same with what documents, or items of tasks, say of it.
        p_holm: The larger p-value of both after Holm's correction; None if there is none.
    """

    over_seeds: Estimate
    over_units: Estimate
    p_holm: float | None = None

    @property
    def spread(self) -> Spread:
        """The difference with an interval that covers both."""
        return Spread.covering(self.over_seeds.value, self.over_seeds, self.over_units)


@dataclass(frozen=True)
class Score:
    """The score of a row's students in one task.

    Attributes:
        spread: Mean over seeds, its interval also over items; None if not measured.
        above_specialist: The difference to the task's specialist over items; None if it has none.
        p_holm: Of that difference, after Holm's correction; None likewise.
    """

    spread: Spread | None
    above_specialist: Spread | None
    p_holm: float | None


@dataclass(frozen=True)
class MeasuredRow:
    """One way to train the student, and what it came to.

    Attributes:
        content: Its JSON.
        label: In words, for tables.
    """

    content: Content
    label: str

    @property
    def name(self) -> str:
        """Unique name within its experiment."""
        return str(self.content["name"])

    @property
    def group(self) -> str:
        """Name of the group that it is shown in."""
        return str(self.content["group"])

    @property
    def seeds(self) -> list[int]:
        """Seeds of its runs."""
        return list(self.content["seeds"])

    @property
    def learning_rate(self) -> float:
        """Peak learning rate, tuned or taken from another row."""
        return float(self.content["learning_rate"])

    def has(self, figure: str) -> bool:
        """Tell whether a figure was measured."""
        return figure in self.content["figures"]

    def spread(self, figure: str) -> Spread | None:
        """Mean of a figure; None if it was not measured."""
        return Spread.read(self.content["figures"].get(figure))

    def by_seed(self, figure: str) -> dict[int, float | None]:
        """Values of a figure by seed."""
        values = self.content["figures"].get(figure, {}).get("values", [])
        return dict(zip(self.seeds, values, strict=False))

    @property
    def against_baseline(self) -> Comparison | None:
        """Its loss minus the baseline's; None for the baseline itself and where other text measured it."""
        found = self.content["against_baseline"]
        if found is None:
            return None
        seeds, documents = (Estimate.read(found[over]) for over in ("over_seeds", "over_documents"))
        return Comparison(seeds, documents, finite(found["p_holm"]))

    @property
    def tasks_against_baseline(self) -> Comparison | None:
        """The same of its mean score over tasks."""
        found = self.content.get("tasks_against_baseline")
        if found is None:
            return None
        return Comparison(Estimate.read(found["over_seeds"]), Estimate.read(found["over_items"]))

    def score(self, task: str) -> Score:
        """Score in a task."""
        found = self.content.get("tasks", {}).get(task)
        test = found and found["to_specialist"]
        if not test:
            return Score(Spread.read(found), None, None)
        estimate = Estimate.read(test)
        return Score(Spread.read(found), Spread.covering(estimate.value, estimate), finite(test["p_holm"]))

    @property
    def tasks_mean(self) -> Spread | None:
        """Mean score over tasks."""
        return Spread.read(self.content.get("tasks_mean"))

    @property
    def kept(self) -> Spread | None:
        """That mean as a share of the specialists'; None if a task has none."""
        return Spread.read(self.content.get("kept"))

    @property
    def kept_is_over_items_only(self) -> bool:
        """Tell whether the interval of `kept` is over items alone, as with one seed."""
        return finite(self.content["kept"]["low"]) is None


@dataclass(frozen=True)
class Task:
    """A task on which students and teachers were measured.

    Attributes:
        kind: Which of the five tasks it is.
        primary: Name of its figure.
        num_items: Items that all answered.
        baselines: Scores of answers that read no prompt, by name.
        teachers: Scores of teachers, by name.
        specialist: Name of the teacher whose task this is; None if there is none.
    """

    kind: str
    primary: str
    num_items: int
    baselines: Mapping[str, float]
    teachers: Mapping[str, Spread]
    specialist: str | None

    @classmethod
    def read(cls, content: Content) -> "Task":
        """Read a task from the results' JSON."""
        scores = {name: Estimate.read(score) for name, score in content["teachers"].items()}
        return cls(
            content["task"],
            content["primary"],
            content["items"],
            content["baselines"],
            {name: Spread.covering(score.value, score) for name, score in scores.items()},
            content.get("specialist"),
        )


@dataclass(frozen=True)
class Measured:
    """The results of one experiment.

    Attributes:
        content: Its JSON, see `collegium.paper.results.collect`.
    """

    content: Content

    @property
    def experiment(self) -> str:
        """Name of the experiment."""
        return str(self.content["experiment"])

    @property
    def rows(self) -> list[MeasuredRow]:
        """In the order of the JSON."""
        return [MeasuredRow(row, row["label"]) for row in self.content["rows"]]

    @property
    def baseline(self) -> MeasuredRow | None:
        """The row that others are compared with; None if it was not made."""
        return self.row(self.content["baseline"])

    @property
    def tasks(self) -> dict[str, Task]:
        """Tasks by name; none where no task was measured."""
        return {name: Task.read(task) for name, task in self.content.get("tasks", {}).items()}

    @property
    def student_size(self) -> float:
        """Parameters of the student as a share of a specialist's, where tasks were measured."""
        sizes = self.content["parameters"]
        return float(sizes["student"] / sizes["specialist"])

    @property
    def student_tokens(self) -> float | None:
        """Tokens of text that the student reads; None if the specification does not limit them."""
        return finite(self.content.get("student_tokens"))

    @property
    def domains(self) -> list[str]:
        """Domains of the text."""
        return list(self.content["text"])

    @property
    def groups(self) -> list[str]:
        """Names of groups of rows, in the order of their first row."""
        return list(dict.fromkeys(row.group for row in self.rows))

    def row(self, name: str) -> MeasuredRow | None:
        """A row by its name; None if it was not made."""
        return next((row for row in self.rows if row.name == name), None)

    def named(self, names: Sequence[str]) -> list[MeasuredRow]:
        """Those of these rows that are there, in this order."""
        return [row for name in names if (row := self.row(name)) is not None]

    def in_group(self, group: str) -> list[MeasuredRow]:
        """Rows of a group."""
        return [row for row in self.rows if row.group == group]

    def numbered(self, prefix: str) -> dict[int, MeasuredRow]:
        """Rows `PREFIX_NUMBER` by their number, in its order."""
        found = {}
        for row in self.rows:
            start, _, number = row.name.rpartition("_")
            if start == prefix and number.isdigit():
                found[int(number)] = row
        return dict(sorted(found.items()))

    def change(self, figure: str, name: str, reference: str) -> Spread | None:
        """Change of a figure from a reference row, as a share of it, paired by seed; None if not known."""
        row = self.row(name)
        other = self.row(reference)
        pairs = [] if row is None or other is None else _paired(row, other, figure)
        return over_seeds([a / b - 1.0 for a, b in pairs]) if pairs and all(b for _, b in pairs) else None


def _paired(row: MeasuredRow, other: MeasuredRow, figure: str) -> list[tuple[float, float]]:
    """Values of the seeds that both rows have."""
    others = other.by_seed(figure)
    pairs = ((value, others.get(seed)) for seed, value in row.by_seed(figure).items())
    return [(value, reference) for value, reference in pairs if value is not None and reference is not None]


def read_results(folder: Path) -> dict[str, Measured]:
    """Read the experiments whose results are in a folder, by name."""
    paths = {name: folder / f"{name}.json" for name in EXPERIMENTS}
    return {
        name: Measured(read_sealed(path, fix=f"run `collegium reproduce {name}` again"))
        for name, path in paths.items()
        if path.exists()
    }
