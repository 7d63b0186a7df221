"""Teachers that are loaded from a recipe's sections."""

import torch

from collegium.assembly.local_teachers import _report_alignment, load_teachers
from collegium.recipe.sections.models import LocalTeacherSection
from tests.support.pico import byte_tokenizer, pico_llama
from tests.support.small_tokenizers import byte_level


def test_a_teacher_with_another_tokenizer_is_reported_once_by_what_it_shares(tmp_path, caplog):
    tokenizer = byte_level()
    pico_llama(vocab_size=len(tokenizer)).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    section = LocalTeacherSection(name="far", kind="local", model=str(tmp_path))
    _report_alignment.cache_clear()
    with caplog.at_level("INFO", logger="collegium"):
        for _ in range(2):
            load_teachers([section], byte_tokenizer(), device=torch.device("cpu"))
    (message,) = [record.getMessage() for record in caplog.records if "another tokenizer" in record.getMessage()]
    assert message.startswith("teacher 'far' has another tokenizer, of whose 408 tokens 256 are the student's too")
    assert "exact wherever both cut the text at the same place" in message
