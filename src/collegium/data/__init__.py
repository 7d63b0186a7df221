"""Text, from sources to batches: sources, prepare, collate."""

from collegium.data.blocks import PackedBlocks, pack_documents
from collegium.data.collate import BlockCollator
from collegium.data.documents import Document
from collegium.data.hub import HubRows, HubSource
from collegium.data.order import DomainOrder, StatelessOrder
from collegium.data.prepare import prepare_text
from collegium.data.prepared import PreparedText
from collegium.data.settings import PrepareProgress, SourceLimits
from collegium.data.sources import FileSource, Source
from collegium.data.task_source import FileRows, TaskSource


__all__ = [
    "BlockCollator",
    "Document",
    "DomainOrder",
    "FileRows",
    "FileSource",
    "HubRows",
    "HubSource",
    "PackedBlocks",
    "PrepareProgress",
    "PreparedText",
    "Source",
    "SourceLimits",
    "StatelessOrder",
    "TaskSource",
    "pack_documents",
    "prepare_text",
]
