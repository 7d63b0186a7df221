import logging
import sys

import pytest

from collegium.base.errors import RecipeError
from collegium.export.formats import FORMATS, find_format
from collegium.export.packages import quietly


@pytest.mark.parametrize(
    ("name", "module"), [("gguf", "gguf"), ("onnx", "onnxscript"), ("safetensors-int8", "torchao.quantization")]
)
def test_a_missing_package_is_named_with_the_mend(name, module, monkeypatch):
    for known in [key for key in sys.modules if key.split(".")[0] == module.split(".")[0]]:
        monkeypatch.delitem(sys.modules, known)
    for found in FORMATS[name].modules:
        monkeypatch.setitem(sys.modules, found, None)
    with pytest.raises(RecipeError, match=rf"--to {name}: needs \w+.*pip install 'collegium\[export\]'") as caught:
        FORMATS[name].require()
    assert caught.value.exit_code == 2


def test_an_unknown_format_is_told_which_there_are():
    with pytest.raises(RecipeError, match="--to pdf: no such format; give one of gguf, onnx, safetensors-int8"):
        find_format("pdf")


def test_converters_are_quiet_for_a_while():
    logger = logging.getLogger("torchao")
    before = logger.level
    with quietly():
        assert not logger.isEnabledFor(logging.WARNING)
    assert logger.level == before
