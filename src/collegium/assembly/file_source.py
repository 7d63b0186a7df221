"""Text files from their section: apart from `sources`, as `check` looks at them without importing `datasets`."""

from collegium.data.sources import FileSource
from collegium.recipe.sections.sources import FileSourceSection


def build_file_source(section: FileSourceSection) -> FileSource:
    """Build a source of text files."""
    return FileSource(
        section.name,
        section.path,
        format=section.format,
        documents=section.documents,
        separator=section.separator,
        text_column=section.text_column,
        prompt_column=section.prompt_column,
    )
