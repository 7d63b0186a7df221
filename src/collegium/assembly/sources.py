"""Sources of text and of tasks: where the kind of a section meets its class."""

from collegium.assembly.file_source import build_file_source
from collegium.data.hub import HubRows, HubSource
from collegium.data.sources import Source
from collegium.data.task_source import FileRows, TaskSource
from collegium.recipe.sections.sources import FileSourceSection, HubSourceSection, TaskSourceSection
from collegium.recipe.sections.tasks import TaskDataSection


def build_source(section: HubSourceSection | FileSourceSection | TaskSourceSection) -> Source:
    """Build a text source."""
    match section:
        case TaskSourceSection():
            return build_task_source(section.name, section)
        case FileSourceSection():
            return build_file_source(section)
        case HubSourceSection():
            return HubSource(
                section.name,
                section.dataset,
                config=section.config,
                split=section.split,
                revision=section.revision,
                text_column=section.text_column,
                prompt_column=section.prompt_column,
            )


def build_task_source(name: str, section: TaskDataSection) -> TaskSource:
    """Build the source of a task's items, which can be read as documents or as they are."""
    if section.path is not None:
        rows: FileRows | HubRows = FileRows(section.path)
    else:
        assert section.dataset is not None, "the section has one of them"
        rows = HubRows(
            name, section.dataset, config=section.config, split=section.split, revision=section.revision
        )
    return TaskSource(
        name,
        section.task,
        rows,
        part=section.part,
        evaluation_share=section.evaluation_share,
        max_characters=section.max_characters,
    )
