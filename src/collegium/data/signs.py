"""Signs that a text is not what it is read as: chats with their control tokens spelt out, prose cut into lines.

Neither must be wrong, so nothing is refused; whoever prepares the text reads of it once, before it takes hours.
"""

import re
from collections.abc import Iterator, Sequence

from collegium.base.visible import visible
from collegium.data.documents import Document


_SHARE_WITH_TOKENS = 0.02
_SHARE_CONTINUED = 0.4
_SHARE_WITH_ENDS = 0.05  # of lines in which a sentence ends: lists of commands or of names have none
_SENTENCE_END = re.compile(r"[.!?] [A-Z]")
_FEWEST_LINES = 10
_LINE_CHARACTERS = range(30, 200)
_ENDS = tuple(".!?…:;\"'”»)]}>|\u2019\u3002\uff01\uff1f")
_SHOWN_TOKENS = 4


class TextSigns:
    """Watches the documents of one source.

    Args:
        name: The source, or what else the documents are called.
        special_tokens: Special tokens of the tokenizer, as they are spelt.
    """

    def __init__(self, name: str, special_tokens: Sequence[str]) -> None:
        self._name = name
        # Words are no sign; `<s>` in HTML is one, but not in enough documents.
        spelt = sorted((token for token in special_tokens if not token.isalnum()), key=len, reverse=True)
        self._special = re.compile("|".join(map(re.escape, spelt))) if spelt else None
        self._found: dict[str, None] = {}
        self._with_tokens = 0
        self._num_documents = 0
        self._num_lines = 0
        self._continued = 0
        self._with_ends = 0
        self._line = ""

    def see(self, document: Document) -> None:
        """Look at the next document."""
        if document.problem is not None or not document.text.strip():
            self._line = ""
            return
        self._num_documents += 1
        if self._special is not None and self._special.search(document.text):
            self._with_tokens += 1
            if len(self._found) < _SHOWN_TOKENS:
                self._found.update(dict.fromkeys(self._special.findall(document.text)))
        self._see_line(document.text)

    def _see_line(self, text: str) -> None:
        if self._line:
            self._num_lines += 1
            self._with_ends += _SENTENCE_END.search(self._line) is not None
            self._continued += not self._line.endswith(_ENDS) and text[:1].islower()
        is_line = len(text) in _LINE_CHARACTERS and "\n" not in text
        self._line = text.rstrip() if is_line else ""

    def sentences(self, num_tokens: int) -> Iterator[str]:
        """What to say of the documents, of which some were made into `num_tokens` tokens."""
        if self._with_tokens > max(1, _SHARE_WITH_TOKENS * self._num_documents):
            shown = ", ".join(visible(token) for token in list(self._found)[:_SHOWN_TOKENS])
            yield (
                f"{self._name}: {self._with_tokens:,} of the first {self._num_documents:,} documents spell "
                f"special tokens of the tokenizer ({shown}), and text is read as it stands: 0 control tokens "
                f"among {num_tokens:,} tokens. If it was rendered with a chat template, the student will not "
                "learn its turns: docs/text.md says how to train on chats"
            )
        if (
            self._num_lines >= _FEWEST_LINES
            and self._continued >= _SHARE_CONTINUED * self._num_lines
            and self._with_ends >= _SHARE_WITH_ENDS * self._num_lines
        ):
            yield (
                f"{self._name}: its documents look like the lines of wrapped prose: {self._continued:,} of the "
                f"first {self._num_lines:,} go on in the next one. If a line is not a document, set "
                r'`documents: separator` and `separator: "\n\s*\n"` for paragraphs, or `documents: file`'
            )
